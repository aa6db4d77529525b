"""Datasets: read-only trees below /data that many jobs share, kept on the host with the images."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import new_run
from datasethost import give_datasets
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources, ImageInvalid, SecurityViolation, SpecInvalid
from sandfleet_config.settings import HostSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.datasets import DatasetMissing, DatasetMount, DatasetStore, DatasetsUnsupported
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import JOB_SECONDS, wait_until

if TYPE_CHECKING:
    from conftest import Run
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

WRITABLE = {"read_only_rootfs": False}
ATTACK = """
cat /data/corpus/hello
for path in /data /data/corpus /data/corpus/sub; do touch $path/new 2>/dev/null && echo "wrote $path"; done
rm -f /data/corpus/hello 2>/dev/null && echo removed
chmod 777 /data/corpus/hello 2>/dev/null && echo changed
mount -o remount,rw /data/corpus 2>/dev/null && echo remounted
cat /data/corpus/hello
"""


@pytest.fixture
def host(host: HostSettings, images_root: Path, tmp_path: Path) -> HostSettings:
    return give_datasets(host, images_root, tmp_path / "root")


@pytest.mark.usefixtures("able", "corpus")
def test_a_plan_knows_the_files_of_its_datasets(runner: RunscRunner, datasets: DatasetStore) -> None:
    mount = DatasetMount("/data/corpus", datasets.list()[0].erofs_path)
    image, platform = runner.images.resolve("busybox"), runner.config.runsc.platform
    plain, plan = runner._new_plan(image, platform), runner._new_plan(image, platform, datasets=(mount,))
    assert plan != plain
    assert plan == runner._new_plan(image, platform, datasets=(mount,))
    assert plan != runner._new_plan(image, platform, datasets=(mount._replace(path="/data/other"),))
    assert not plan.is_stale
    with mount.erofs.open("r+b") as file:
        file.write(b"x")
    assert (plan.is_stale, plan.find_overwritten()) == (True, "the file of the dataset at /data/corpus")
    assert (plain.is_stale, plain.find_overwritten()) == (False, "")
    mount.erofs.unlink()
    assert (plan.is_stale, plan.find_overwritten()) == (True, "")


@pytest.mark.usefixtures("able", "corpus")
def test_what_an_image_has_in_data_is_hidden_and_data_must_be_a_folder(
    runner: RunscRunner, run: Run, tree: Path
) -> None:
    (tree / "bin").mkdir()
    shutil.copy(str(shutil.which("busybox")), tree / "bin/ls")
    (tree / "data").mkdir()
    (tree / "data/own").write_text("own")
    runner.images.add("test-data-own", f"rootfs:{tree}")
    shutil.rmtree(tree / "data")
    (tree / "data").symlink_to("/tmp")
    runner.images.add("test-data-link", f"rootfs:{tree}")
    try:
        seen = [run("ls", "/data", image="test-data-own", **more).stdout.text for more in MORE]
        assert seen == ["own\n", "corpus\n"]
        with pytest.raises(ImageInvalid, match="has no folder /data for datasets"):
            run("ls", "/data", image="test-data-link", datasets=[{"name": "corpus"}])
    finally:
        runner.images.remove("test-data-own")
        runner.images.remove("test-data-link")


MORE: tuple[dict[str, Any], ...] = ({}, {"datasets": [{"name": "corpus"}]})


@pytest.mark.usefixtures("able", "corpus")
@pytest.mark.parametrize("security", [{}, WRITABLE], ids=["read-only root", "writable root"])
def test_no_job_can_change_a_dataset(run: Run, run_as_root: Run, security: dict[str, bool]) -> None:
    for user in (run, run_as_root):
        outcome = user("sh", "-c", ATTACK, datasets=[{"name": "corpus"}], security=security)
        assert outcome.stdout.text == "hello data\nhello data\n", outcome.stderr.text


@pytest.mark.usefixtures("able", "corpus")
def test_every_user_reads_all_of_it_and_gets_no_rights_by_it(run: Run) -> None:
    outcome = run(
        "sh",
        "-c",
        "cd /data/corpus && stat -c '%n %a %u:%g' . * sub/*; /data/corpus/link; sub/tool",
        datasets=[{"name": "corpus"}],
        security={"user": "4321:4321"},
    )
    assert outcome.stdout.text.splitlines() == [
        ". 755 0:0",
        "hello 644 0:0",
        "link 777 0:0",
        "sub 755 0:0",
        "sub/tool 755 0:0",
        "4321",
        "4321",
    ], outcome.stderr.text


@pytest.mark.usefixtures("able")
def test_a_dataset_is_found_by_name_by_digest_and_at_a_path_of_the_specs(run: Run, corpus: str, source: Path) -> None:
    wanted = [
        {"name": "corpus", "sha256": corpus},
        {"sha256": corpus, "path": "/data/a"},
        {"name": "corpus", "path": "/data/b"},
    ]
    outcome = run("sh", "-c", "cat /data/*/hello; ls /data", datasets=wanted)
    assert outcome.stdout.text == "hello data\n" * 3 + "a\nb\ncorpus\n"


@pytest.mark.usefixtures("able", "corpus")
def test_files_and_a_home_in_data_do_not_hide_datasets(run: Run) -> None:
    outcome = run("sh", "-c", "echo $HOME; ls /data; ls /work", datasets=[{"name": "corpus"}])
    assert outcome.stdout.text == "/tmp\ncorpus\n"


@pytest.mark.usefixtures("able")
def test_a_job_reads_more_than_its_memory(run: Run, datasets: DatasetStore, tmp_path: Path) -> None:
    """Pages of a dataset are the host's cache, which the kernel takes back."""
    folder = tmp_path / "large"
    folder.mkdir()
    with (folder / "file").open("wb") as file:
        for _ in range(96):
            file.write(os.urandom(1 << 20))
    datasets.add("large", folder)
    outcome = run(
        "sh",
        "-c",
        "cat /data/large/file /data/large/file | wc -c",
        datasets=[{"name": "large"}],
        resources={"memory_bytes": "64MiB"},
        timeout=60,
    )
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, f"{192 << 20}\n"), outcome.message


@pytest.mark.usefixtures("able", "corpus")
def test_spares_are_of_an_image_with_its_datasets(host: HostSettings) -> None:
    with RunscRunner(host.model_copy(update={"warm": WarmSettings(size=1)})) as runner:

        def run(**fields: Any) -> tuple[bool, str]:
            spec = SandboxSpec.model_validate(
                {"image": "busybox", "command": ["ls", "/data"], "timeout": JOB_SECONDS, **fields}
            )
            ending = runner.execute(admit(spec, runner.config))
            return ending.runtime.warm, ending.stdout.text

        def wait_for_a_spare() -> None:
            wait_until(lambda: runner._provider.pool.count_idle() == 1, 60, "a spare is up")

        datasets = {"datasets": [{"name": "corpus"}]}
        assert run(**datasets) == (False, "corpus\n")
        wait_for_a_spare()
        assert run(**datasets) == (True, "corpus\n")
        wait_for_a_spare()
        assert run() == (False, ""), "a job without datasets gets none of another's"


@pytest.mark.usefixtures("able", "corpus")
def test_a_dataset_in_use_is_not_removed(run: Run, datasets: DatasetStore) -> None:
    refused = list[str]()

    def remove() -> None:
        wait_until(lambda: is_held(datasets), 20, "the job has begun")
        try:
            datasets.remove("corpus")
        except ImageInvalid as error:
            refused.append(error.message)

    thread = threading.Thread(target=remove)
    thread.start()
    outcome = run("sh", "-c", "sleep 2; cat /data/corpus/hello", datasets=[{"name": "corpus"}])
    thread.join()
    assert outcome.stdout.text == "hello data\n"
    assert refused == ["dataset corpus is in use by a running job: remove it again when its jobs have ended"]
    datasets.remove("corpus")
    assert not datasets.list()


def is_held(datasets: DatasetStore) -> bool:
    with datasets.list()[0].erofs_path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.usefixtures("able")
def test_a_host_without_the_dataset_says_what_to_run(run: Run, corpus: str) -> None:
    with pytest.raises(DatasetMissing) as caught:
        run("true", datasets=[{"name": "corpus"}, {"name": "corpse"}])
    assert caught.value.code is ErrorCode.SPEC_INVALID
    assert caught.value.message == (
        "datasets.1: no dataset corpse here (this host has: corpus): run `sandfleet-worker datasets add corpse FOLDER`"
    )
    assert [fault["field"] for fault in caught.value.errors] == ["datasets.1"]
    with pytest.raises(DatasetMissing, match=f"corpus is sha256:{corpus} on this host, and the pinned"):
        run("true", datasets=[{"name": "corpus", "sha256": "0" * 64}])


@pytest.mark.usefixtures("corpus")
def test_a_runsc_that_mounts_no_datasets_says_so(run: Run, runsc: RunscBinary) -> None:
    if runsc.abilities.mounts_erofs:
        assert run("true", datasets=[{"name": "corpus"}]).code is ErrorCode.OK
        return
    with pytest.raises(DatasetsUnsupported, match="cannot mount datasets: install a release of gVisor from 20260126"):
        run("true", datasets=[{"name": "corpus"}])


@pytest.mark.usefixtures("corpus")
def test_a_policy_names_the_datasets_that_jobs_may_use(host: HostSettings) -> None:
    policy = host.policy.model_copy(update={"datasets": ("public-*",)})
    with (
        RunscRunner(host.model_copy(update={"policy": policy})) as runner,
        pytest.raises(SecurityViolation, match=r"datasets\.0: 'corpus' is not in this host's policy"),
    ):
        new_run(runner)("true", datasets=[{"name": "corpus"}])


@pytest.mark.usefixtures("able", "corpus")
def test_a_damaged_dataset_is_the_hosts_fault(run: Run, datasets: DatasetStore) -> None:
    dataset = datasets.list()[0]
    datasets.verify(dataset)
    with dataset.erofs_path.open("r+b") as file:
        file.seek(4096)
        file.write(b"x")
    with pytest.raises(ImageInvalid, match=r"dataset corpus is damaged .*`sandfleet-worker datasets rm corpus`"):
        datasets.verify(dataset)
    dataset.erofs_path.unlink()
    with pytest.raises(HostResources, match="dataset corpus is damaged"):
        run("true", datasets=[{"name": "corpus"}])


def test_the_errors_are_those_of_a_request() -> None:
    assert issubclass(DatasetMissing, SpecInvalid)
    assert issubclass(DatasetsUnsupported, SpecInvalid)
