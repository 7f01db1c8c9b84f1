"""The tasks that fronts serve. A new task is one module beside this one, and one entry in `_ALL`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from handlers.contract.card import Task
from service.frontends.tasks.base import TaskFront
from service.frontends.tasks.classify import CLASSIFY
from service.frontends.tasks.detect import DETECT
from service.frontends.tasks.segment import SEGMENT

_ALL: tuple[TaskFront[Any, Any], ...] = (CLASSIFY, DETECT, SEGMENT)

TASKS: Mapping[Task, TaskFront[Any, Any]] = MappingProxyType({front.task: front for front in _ALL})
