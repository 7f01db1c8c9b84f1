"""A whole gateway on an IPv6 address: it answers at the addresses that it reports."""

from fakes import running_gateway
from gateway_calls import IMAGE, get, stub

from service.pb.mobilevision.v1 import vision_pb2


async def test_a_gateway_answers_on_ipv6_addresses() -> None:
    async with running_gateway(grpc_host="::1", http_host="::1") as running:
        assert running.grpc.startswith("[::1]:")
        reply = await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
        assert reply.model.name == "toy_classify"
        assert (await get(running, "/livez"))[0] == 200
