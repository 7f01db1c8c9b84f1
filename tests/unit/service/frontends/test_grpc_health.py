"""Serving states of the gRPC health service, from reports."""

from grpc_health.v1 import health_pb2

from service.frontends.grpc.health import ALL_MODELS, GrpcHealth
from service.frontends.grpc.method_handlers import SERVICE
from service.serving.health import HealthReport

ONE, TWO = "toy_classify", "toy_detect"


async def state(health: GrpcHealth, service: str) -> str:
    reply = await health.servicer.Check(health_pb2.HealthCheckRequest(service=service), None)  # type: ignore[arg-type]
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


async def test_grpc_health_keeps_the_service_while_one_model_does_not_answer() -> None:
    health = GrpcHealth(max_watches=4)
    health.publish(HealthReport({ONE: None, TWO: "it is starting"}, draining=False))
    names = ("", ALL_MODELS, ONE, TWO, SERVICE)
    states = {name: await state(health, name) for name in names}
    assert states == {
        "": "SERVING",
        ALL_MODELS: "NOT_SERVING",
        ONE: "SERVING",
        TWO: "NOT_SERVING",
        SERVICE: "SERVING",
    }
    health.publish(HealthReport({ONE: "its worker died", TWO: "it is starting"}, draining=False))
    assert await state(health, "") == "NOT_SERVING"
    assert await state(health, SERVICE) == "SERVING"
    health.publish(HealthReport({ONE: None, TWO: None}, draining=False))
    assert {await state(health, name) for name in names} == {"SERVING"}
    health.publish(HealthReport({ONE: None, TWO: None}, draining=True))
    assert {await state(health, name) for name in names} == {"NOT_SERVING"}
