"""The registry of tasks agrees with the card's tasks and with the proto."""

import pytest

from handlers.contract.card import Task
from service.frontends.servicer import VisionServicer
from service.frontends.tasks.base import TaskFront
from service.frontends.tasks.registry import TASKS
from service.pb.mobilevision.v1 import vision_pb2

METHODS = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].methods_by_name


def test_every_task_of_a_card_has_a_front_and_a_value_in_the_proto() -> None:
    assert set(TASKS) == set(Task)
    values = {value.number for value in vision_pb2.Task.DESCRIPTOR.values} - {vision_pb2.TASK_UNSPECIFIED}
    assert {front.proto_task for front in TASKS.values()} == values


@pytest.mark.parametrize("front", TASKS.values(), ids=lambda front: front.task)
def test_the_method_of_a_task_takes_its_request(front: TaskFront) -> None:
    assert METHODS[front.method].input_type.name == f"{front.method}Request"
    assert vision_pb2.Task.Name(front.proto_task) == f"TASK_{front.task.upper()}"


def test_the_servicer_has_every_method_of_the_proto() -> None:
    servicer = VisionServicer(pipeline=None, catalog=None, health=None, engine="")
    assert {*servicer.methods, "Batch", "Stream"} == set(METHODS)
