"""What serving has to know about each task: one entry per task in `TASKS`, in place of conditions elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from handlers.contract.card import Task
from service.serving.agreement import ModelOutput, box_f1, mean_iou, top1


@dataclass(frozen=True, slots=True)
class TaskTraits:
    """How serving treats a task.

    `agreement` compares the outputs of two versions for one picture, 0 to 1; `metric` is its name in the metrics.
    `renders_in_thread`: rendering a reply takes milliseconds, so it must not keep the event loop busy. Shorter
    rendering takes less time than the way to a thread and back.
    """

    metric: str
    agreement: Callable[[ModelOutput, ModelOutput], float]
    renders_in_thread: bool = False


TASKS: Mapping[Task, TaskTraits] = MappingProxyType(
    {
        Task.CLASSIFY: TaskTraits(metric="top1", agreement=top1),
        Task.DETECT: TaskTraits(metric="box_f1", agreement=box_f1),
        Task.SEGMENT: TaskTraits(metric="miou", agreement=mean_iou, renders_in_thread=True),  # masks become PNG
    }
)
