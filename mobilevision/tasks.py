"""The three tasks, by the names the command line uses and by the numbers the protocol uses."""

from collections.abc import Mapping
from enum import StrEnum

from service.pb.mobilevision.v1 import vision_pb2


class Task(StrEnum):
    """What a model answers."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"


TASK_NUMBERS: Mapping[Task, vision_pb2.Task.ValueType] = {
    Task.CLASSIFY: vision_pb2.TASK_CLASSIFY,
    Task.DETECT: vision_pb2.TASK_DETECT,
    Task.SEGMENT: vision_pb2.TASK_SEGMENT,
}
