"""What TorchServe may load: checked copies in its own folder, or archives that were checked in place."""

from pathlib import Path

import archive_files
import pytest
from archive_files import CODE_ENTRY, card_of, rezip
from fakes import local_settings
from signing_keys import pair

from handlers.contract import archive_file, signature
from service.core import trusted_archive
from service.core.catalog import Catalog
from service.core.errors import BackendUnavailable
from service.core.trusted_archive import ArchiveUntrusted
from service.engines.base import Loading
from service.engines.torchserve.client import TorchServeClient, TorchServeEndpoint
from service.engines.torchserve.config import Ports, config_for
from service.engines.torchserve.engine import TorchServeEngine
from service.engines.torchserve.model_store import ModelStore
from service.engines.torchserve.run_directory import admit_archives, prepare, write_properties

NAME = "toy_classify"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    return archive_files.write(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


def admit(store: ModelStore, archive: Path, **changes: bool) -> str:
    return store.admit(archive, NAME, "1.0", card_of(), **changes)


def spoil(archive: Path) -> None:
    archive.write_bytes(rezip(archive.read_bytes(), lambda info, data: (info, data.replace(b"def ", b"dev "))))


def sign(archive: Path, key: Path) -> None:
    entry = signature.sign(archive_file.check(archive).digests, signature.private_key(key))
    archive.write_bytes(archive_file.signed(archive, entry))


def test_the_copy_that_was_checked_is_what_torchserve_reads(archive: Path, folder: Path) -> None:
    file = admit(ModelStore(folder), archive)
    before = archive.read_bytes()
    spoil(archive)
    assert (folder / file).read_bytes() == before
    assert (folder / file).stat().st_mode & 0o777 == 0o400
    assert [path.name for path in folder.iterdir()] == [f"{NAME}@1.0.mar"]


def test_a_change_between_copy_and_check_is_seen(archive: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check reads the copy, so a writer of the original comes too late or is noticed, never in between."""
    checked: list[Path] = []
    check = trusted_archive.check

    def check_late(path: Path, *arguments: object, **named: object) -> None:
        spoil(archive)
        checked.append(path)
        check(path, *arguments, **named)

    monkeypatch.setattr(trusted_archive, "check", check_late)
    before = archive.read_bytes()
    file = admit(ModelStore(folder), archive)
    assert checked[0].parent == folder
    assert (folder / file).read_bytes() == before


def test_a_refused_archive_leaves_nothing_and_is_named(archive: Path, folder: Path) -> None:
    spoil(archive)
    with pytest.raises(ArchiveUntrusted, match=f"^{archive}: entry '{CODE_ENTRY}' has sha256"):
        admit(ModelStore(folder), archive)
    assert list(folder.iterdir()) == []


def test_a_refused_archive_is_read_again_only_after_a_change(
    archive: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    check = archive_file.check
    monkeypatch.setattr(archive_file, "check", lambda path, **named: reads.append(path) or check(path, **named))
    store, good = ModelStore(folder), archive.read_bytes()
    spoil(archive)
    for _ in range(3):
        with pytest.raises(ArchiveUntrusted, match="it was changed"):
            admit(store, archive)
    assert len(reads) == 1
    archive.write_bytes(good + b"")
    admit(store, archive)


def test_a_card_that_was_swapped_is_refused(archive: Path, folder: Path) -> None:
    swapped = card_of().model_copy(update={"labels": ("bright", "gray", "dark")})
    store = ModelStore(folder)
    with pytest.raises(ArchiveUntrusted, match=r"not the card beside the archive.*models build toy_classify"):
        store.admit(archive, NAME, "1.0", swapped)
    admit(store, archive)  # with the right card, though the file is the same


def test_an_archive_that_went_away_is_told(archive: Path, folder: Path) -> None:
    archive.unlink()
    with pytest.raises(ArchiveUntrusted, match="cannot be brought to TorchServe: No such file"):
        admit(ModelStore(folder), archive)


def test_a_restart_keeps_the_copy_and_checks_it_again(archive: Path, folder: Path) -> None:
    store = ModelStore(folder)
    file = admit(store, archive)
    spoil(archive)
    assert admit(store, archive, keep=True) == file
    (folder / file).chmod(0o600)
    spoil(folder / file)
    with pytest.raises(ArchiveUntrusted, match="it was changed"):
        admit(store, archive, keep=True)
    store.remove(NAME, "1.0")
    store.remove(NAME, "1.0")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("copied", [True, False])
def test_a_signature_is_required_where_keys_are_given(
    copied: bool, archive: Path, folder: Path, tmp_path: Path
) -> None:
    (private, public), (other, other_public) = pair(tmp_path), pair(tmp_path, "other")
    keys = tmp_path / "trusted.pem"
    store = ModelStore(folder if copied else None, keys)
    with pytest.raises(ArchiveUntrusted, match=r"require_signature: the key file .*trusted\.pem cannot be read"):
        admit(store, archive)
    keys.write_bytes(public.read_bytes())
    with pytest.raises(ArchiveUntrusted, match=f"^{archive}: it is not signed; sign it: mobilevision models sign"):
        admit(store, archive)
    sign(archive, other)
    with pytest.raises(ArchiveUntrusted, match=f"^{archive}: its signature is of no trusted key"):
        admit(store, archive)
    keys.write_bytes(public.read_bytes() + other_public.read_bytes())  # the keys are read again
    assert admit(store, archive) == (f"{NAME}@1.0.mar" if copied else archive.name)
    keys.write_bytes(public.read_bytes())
    sign(archive, private)
    admit(store, archive)


def test_a_missing_package_is_told(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "handlers.contract.signature", None)
    monkeypatch.delattr("handlers.contract.signature", raising=False)
    with pytest.raises(ArchiveUntrusted, match=r"mobilevision\[signing\]"):
        trusted_archive.check(archive, None, tmp_path / "keys.pem")


def test_the_run_directory_has_the_copies_and_a_fenced_configuration(archive: Path, tmp_path: Path) -> None:
    settings = local_settings(archives=archive.parent, workers_per_model=1, worker_threads=1)
    config, run = config_for(settings, Catalog([card_of()])), tmp_path / "run"
    run.mkdir(mode=0o700)
    prepare(run, config)
    write_properties(run, config, Ports(inference=1, management=2))
    assert (run / "store").stat().st_mode & 0o777 == 0o700
    assert (run / "store" / f"{NAME}@1.0.mar").read_bytes() == archive.read_bytes()
    lines = (run / "config.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    fence = {
        "model_store": str(run / "store"),
        "load_models": f"{NAME}@1.0.mar",
        "allowed_urls": "none://",
        "use_env_allowed_urls": "false",
        "enable_envvars_config": "false",
        "enable_metrics_api": "false",
        "disable_token_authorization": "false",
        "install_py_dep_per_model": "false",
    }
    assert properties.items() >= fence.items()
    archive.unlink()
    admit_archives(run, config, keep=True)


async def test_a_gateway_checks_the_archives_of_a_torchserve_that_another_program_started(
    archive: Path, tmp_path: Path
) -> None:
    settings = local_settings(
        archives=archive.parent,
        torchserve_inference="127.0.0.1:1",
        torchserve_management="127.0.0.1:2",
        torchserve_key_file=tmp_path / "keys" / "key_file.json",
    )

    def engine() -> TorchServeEngine:
        return TorchServeEngine.from_settings(
            settings,
            Catalog([card_of()]),
            on_progress=lambda _: None,
            on_restart=lambda: None,
            catalog_at_restart=lambda: pytest.fail("not started here"),
        )

    good = engine()
    await good.start()
    await good.stop()
    spoil(archive)
    with pytest.raises(ArchiveUntrusted, match="it was changed"):
        await engine().start()
    (tmp_path / "keys" / "store").mkdir(parents=True)  # made and checked by the process that started TorchServe
    copies = engine()
    await copies.start()
    with pytest.raises(ArchiveUntrusted, match="it was changed"):
        await copies.versions.load(NAME, "1.0", Loading(archive, card_of(), 1, 10, 10))
    archive_files.write(archive.parent)
    with pytest.raises(BackendUnavailable, match="tokens"):  # asked of a TorchServe that is not there
        await copies.versions.load(NAME, "1.0", Loading(archive, card_of(), 1, 10, 10))
    assert (tmp_path / "keys" / "store" / f"{NAME}@1.0.mar").read_bytes() == archive.read_bytes()
    await copies.stop()


async def test_torchserve_is_not_asked_to_load_an_archive_that_is_refused(archive: Path, folder: Path) -> None:
    spoil(archive)
    endpoint = TorchServeEndpoint("127.0.0.1:1", "127.0.0.1:1", None, 2**20, store=ModelStore(folder))
    client = TorchServeClient(endpoint)  # a call would raise BackendUnavailable
    with pytest.raises(ArchiveUntrusted):
        await client.load(NAME, "1.0", Loading(archive, card_of(), 1, 10, 10))
    await client.close()
