"""Where the checkpoint of an entry is published: its official file first, then copies in other layouts.

Facts only. Never uses the network, never imports torch. Sources: the READMEs of ml-cvnets v0.1, EMO,
SwiftFormer and Mobile-Former, and the repositories of timm, Apple and MBZUAI on huggingface.co.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from handlers.contract.card import Task
from model_store import zoo
from model_store.pull.errors import Unpublished

# Files inside a git repository, by the end of their path: SHA-1 of "blob <size>\0<content>" at zhangzjn/EMO@27d9b40.
_GIT_BLOBS: Mapping[str, str] = MappingProxyType(
    {
        "/EMO_1M/net.pth": "76c4282de548fa76eca6011720b29d8f80ffa784",
        "/EMO_2M/net.pth": "9ec7138d292ca9b2d07923aec05762f547db8cf2",
        "/EMO_5M/net.pth": "3ea7450fa9c290c3c46f372c1f5cebe1198d1ce1",
        "/EMO_6M/net.pth": "10a248725247cf18b51e449dbd1a220354457c99",
    }
)
# Google Drive often sends programs a page about virus scanning or a quota instead of the file.
_BY_HAND_HOSTS = {"drive.google.com"}


@dataclass(frozen=True, slots=True)
class Source:
    """One published file. `layout`: see `model_store.weights.layouts`. `git_blob` is empty where unknown."""

    url: str
    layout: str
    git_blob: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether it has to be downloaded with a browser."""
        return urlsplit(self.url).hostname in _BY_HAND_HOSTS

    @property
    def file_name(self) -> str:
        """The last part of the address; empty where that is no file name."""
        last = urlsplit(self.url).path.rpartition("/")[2]
        return last if "." in last else ""


@dataclass(frozen=True, slots=True)
class _Hub:
    """A repository per variant on huggingface.co; `variants` maps our names to those of the repository."""

    layout: str
    repository: str  # with {variant}
    file: str
    variants: Mapping[str, str]


_HUBS: Mapping[tuple[str, Task], tuple[_Hub, ...]] = MappingProxyType(
    {
        ("mobilevit", Task.CLASSIFY): (
            _Hub(
                "timm", "timm/mobilevit_{variant}.cvnets_in1k", "model.safetensors", {v: v for v in ("xxs", "xs", "s")}
            ),
            _Hub(
                "transformers",
                "apple/mobilevit-{variant}",
                "pytorch_model.bin",
                {"xxs": "xx-small", "xs": "x-small", "s": "small"},
            ),
        ),
        ("mobilevit", Task.SEGMENT): (
            _Hub(
                "transformers",
                "apple/deeplabv3-mobilevit-{variant}",
                "pytorch_model.bin",
                {"xxs": "xx-small", "xs": "x-small", "s": "small"},
            ),
        ),
        ("swiftformer", Task.CLASSIFY): (
            _Hub(
                "swiftformer_timm",
                "timm/swiftformer_{variant}.dist_in1k",
                "model.safetensors",
                {v: v for v in ("xs", "s", "l1", "l3")},
            ),
            _Hub(
                "swiftformer_transformers",
                "MBZUAI/swiftformer-{variant}",
                "pytorch_model.bin",
                {v: v for v in ("xs", "s", "l1", "l3")},
            ),
        ),
    }
)
# What the README of SwiftFormer linked from March to July 2023: another form of attention (see the layout).
_FIRST_SWIFTFORMER: Mapping[str, str] = MappingProxyType(
    {
        "xs": "15Ils-U96pQePXQXx2MpmaI-yAceFAr2x",
        "s": "1_0eWwgsejtS0bWGBQS3gwAtYjXdPRGlu",
        "l1": "1jlwrwWQ0SQzDRc5adtWIwIut5d1g9EsM",
        "l3": "1ypBcjx04ShmPYRhhjBRubiVjbExUgSa7",
    }
)


def published(entry: zoo.ModelSpec) -> tuple[Source, ...]:
    """All published files that hold the weights of `entry`, the official one first. Empty where none was published."""
    if not entry.checkpoint_url:
        return ()
    found = [at(entry.checkpoint_url, entry.layout)]
    for hub in _HUBS.get((entry.family, entry.task), ()):
        if entry.variant in hub.variants:
            repository = hub.repository.format(variant=hub.variants[entry.variant])
            found.append(at(f"https://huggingface.co/{repository}/resolve/main/{hub.file}", hub.layout))
    if entry.family == "swiftformer" and entry.task is Task.CLASSIFY:
        drive_id = _FIRST_SWIFTFORMER[entry.variant]
        found.append(at(f"https://drive.google.com/file/d/{drive_id}/view?usp=sharing", "swiftformer_first"))
    return tuple(found)


def at(url: str, layout: str) -> Source:
    """The file at an address, with its git blob id where that is known."""
    blob = next((blob for end, blob in _GIT_BLOBS.items() if url.endswith(end)), "")
    return Source(url=url, layout=layout, git_blob=blob)


def choose(entry: zoo.ModelSpec, layout: str | None) -> Source:
    """The published file of `entry` in `layout`, or the first one where that is None. Raises `Unpublished`."""
    sources = published(entry)
    if not sources:
        raise Unpublished(
            f"no checkpoint of {entry.name} was ever published; use your own: "
            f"mobilevision models pull {entry.name} --from FILE"
        )
    for source in sources:
        if layout is None or source.layout == layout:
            return source
    raise Unpublished(
        f"{entry.name} is not published in layout {layout!r}, but in: {', '.join(s.layout for s in sources)}; "
        "a file of your own is taken with --from FILE"
    )
