"""Recipes as values: faults, bases, pip's settings, tags of wheels, and what is made alike."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from packaging.tags import Tag
from sandfleet_config.errors import ImageInvalid, ImageUnavailable
from sandfleet_worker.sandbox.image.recipe.cache import BuildCache
from sandfleet_worker.sandbox.image.recipe.copied import copy_files
from sandfleet_worker.sandbox.image.recipe.debian import find_python, remove_volatile
from sandfleet_worker.sandbox.image.recipe.inside import make_folder, resolve_inside
from sandfleet_worker.sandbox.image.recipe.lock import Lock, LockedDeb, hash_wanted, read_lock, write_lock
from sandfleet_worker.sandbox.image.recipe.mirror import choose_mirror
from sandfleet_worker.sandbox.image.recipe.model import CopiedPath, Recipe
from sandfleet_worker.sandbox.image.recipe.pip_settings import read_index_settings
from sandfleet_worker.sandbox.image.recipe.site import collect_compiled
from sandfleet_worker.sandbox.image.recipe.wheels import list_tags
from sandfleet_worker.sandbox.image.recipe.whole import join, list_ready, read_recipe
from sandfleet_worker.sandbox.image.tools import Limits

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = """\
base = "debian:buster"
apt = [
    "ffmpeg",
    "Bad Name",
]
pip = ["numpy", "pkg @ https://example.invalid/x.whl"]
working-dir = "/app"
user = "a b"

[env]
"A-B" = "1"

[[files]]
from = "fine"
to = "/fine"

[[files]]
from = "../secret"
to = "relative"
mode = "4755"
"""


def test_all_faults_of_a_recipe_are_told_with_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(FAULTY)
    with pytest.raises(ImageInvalid) as caught:
        read_recipe(path)
    head, *lines = caught.value.message.split("\n  ")
    assert head == f"{path} has 9 faults:"
    assert [line.partition(" must")[0] for line in lines] == [
        "line 1: base",
        "line 4: apt[1]",
        "line 6: pip[1]",
        "line 7: working-dir there is no such field, did you mean working_dir?",
        "line 8: user",
        "line 10: env",
        "line 18: files[1].from",
        "line 19: files[1].to",
        "line 20: files[1].mode",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("apt = [", "is not TOML"),
        ('base = "oci:x"\napt = ["git"]', "`apt` needs a Debian base"),
        ('pip = ["--index-url=x"]', "line 1: pip[0] must be a name of a Python package"),
        ('pip = ["a\\n--no-binary x"]', "line 1: pip[0] must be"),
        ('apt = ["git-"]', "line 1: apt[0] must be the name of a Debian package"),
        ('apt = "git"', "line 1: apt must be a list"),
        ("env = {A = 1}", "line 1: env.A must be a string"),
    ],
)
def test_a_fault_alone_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ImageInvalid) as caught:
        read_recipe(path)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_recipe_that_is_missing_or_no_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ImageInvalid, match="cannot read the recipe"):
            read_recipe(path)


def test_a_recipe_is_joined_with_its_bases(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low/base.toml").write_text(
        'base = "debian:bookworm"\napt = ["git", "jq"]\npip = ["numpy"]\nenv = {A = "1", B = "1"}\n'
        'entrypoint = ["tini"]\ncommand = ["old"]\nuser = "games"\nfiles = [{from = "x", to = "/x"}]\n'
    )
    recipe = Recipe(base="low/base.toml", apt=["jq", "curl"], env={"B": "2"}, entrypoint=["env"])
    whole = join(recipe, tmp_path)
    assert (whole.base, whole.suite) == ("debian:bookworm", "bookworm")
    assert (whole.apt, whole.pip) == (("git", "jq", "curl"), ("numpy",))
    assert whole.env == {"A": "1", "B": "2"}
    assert (whole.entrypoint, whole.command, whole.user) == (("env",), (), "games")
    assert whole.files[0][0] == tmp_path / "low"
    assert join(Recipe(base="oci:img:v1"), tmp_path).base == f"oci:{tmp_path}/img:v1"


def test_recipes_that_build_on_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"')
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    with pytest.raises(ImageInvalid, match="in a circle"):
        join(read_recipe(tmp_path / "a.toml"), tmp_path)
    (tmp_path / "oci.toml").write_text('base = "oci:layout"')
    with pytest.raises(ImageInvalid, match="`apt` needs a Debian base"):
        join(Recipe(base="oci.toml", apt=["git"]), tmp_path)


def test_every_ready_recipe_builds_on_debian_and_says_what_it_is(tmp_path: Path) -> None:
    assert {"bash", "gcc", "go", "java", "node", "python", "python-data", "rust", "typescript"} == set(list_ready())
    for recipe in list_ready().values():
        assert recipe.description
        assert join(recipe, tmp_path).suite == "trixie"


def new_lock(**fields: object) -> Lock:
    deb = {
        "name": "a",
        "version": "1:1~b",
        "architecture": "all",
        "path": "pool/a_1.deb",
        "size": 1,
        "sha256": "0" * 64,
    }
    return Lock.model_validate({"wanted": "x", "apt": [{**deb, **fields}]})


def test_a_lock_is_kept_whole_and_cannot_name_another_place(tmp_path: Path) -> None:
    path = tmp_path / "sub/recipe.lock"
    assert read_lock(path) is None
    write_lock(path, new_lock())
    assert read_lock(path) == new_lock()
    assert [file.name for file in path.parent.iterdir()] == ["recipe.lock"]
    for name, value in (
        ("path", "../x.deb"),
        ("path", "/x.deb"),
        ("path", "http://x/y.deb"),
        ("name", "-o"),
        ("version", "1,x"),
    ):
        changed = json.loads(path.read_text())
        changed["apt"][0][name] = value
        other = tmp_path / "other.lock"
        other.write_text(json.dumps(changed))
        with pytest.raises(ImageInvalid, match=rf"field apt\.0\.{name}"):
            read_lock(other)


def test_what_a_recipe_wants_is_packages_and_base_alone(tmp_path: Path) -> None:
    first = join(Recipe(apt=["aa", "bb"], env={"X": "1"}), tmp_path)
    assert hash_wanted(first, "amd64") == hash_wanted(join(Recipe(apt=["bb", "aa"]), tmp_path), "amd64")
    assert hash_wanted(first, "amd64") != hash_wanted(first, "arm64")
    assert hash_wanted(first, "amd64") != hash_wanted(join(Recipe(pip=["a"]), tmp_path), "amd64")


def test_uv_asks_the_index_that_pip_asks(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = http://one/simple\nextra-index-url =\n  http://two\n  http://three\n"
    )
    found = read_index_settings({**home, "PIP_FIND_LINKS": "/a /b", "PIP_NO_INDEX": "true"})
    assert found.env["UV_DEFAULT_INDEX"] == "http://one/simple"
    assert found.env["UV_INDEX"] == "http://two http://three"
    assert found.env["UV_FIND_LINKS"] == "/a,/b"
    assert found.flags == ("--no-index",)
    own = read_index_settings({**home, "UV_INDEX_URL": "http://own", "UV_INDEX_CORP_PASSWORD": "x", "SECRET": "y"})
    assert own.env == {"UV_INDEX_URL": "http://own", "UV_INDEX_CORP_PASSWORD": "x"}
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/uv/uv.toml").touch()
    assert read_index_settings(home).env == {"UV_CONFIG_FILE": str(tmp_path / ".config/uv/uv.toml")}


def test_wheels_rank_by_how_well_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    tags = list_tags("3.13")
    order = [
        Tag("cp313", "cp313", "manylinux_2_28_x86_64"),
        Tag("cp313", "cp313", "manylinux2014_x86_64"),
        Tag("cp39", "abi3", "manylinux_2_17_x86_64"),
        Tag("py3", "none", "any"),
    ]
    assert [tags[tag] for tag in order] == sorted(tags[tag] for tag in order)
    for foreign in (
        "cp313-cp313-manylinux_2_34_x86_64",
        "cp313-cp313-musllinux_1_2_x86_64",
        "cp312-cp312-linux_x86_64",
    ):
        assert Tag(*foreign.split("-")) not in tags


def test_a_mirror_of_updates_is_none_of_a_whole_release() -> None:
    targets = [
        ["http://s/", "main", "trixie-security"],
        ["http://m", "contrib", "trixie"],
        ["http://m", "main", "trixie"],
    ]
    assert choose_mirror(targets) == "http://m/"
    with pytest.raises(ImageUnavailable, match="SANDFLEET_IMAGES__DEBIAN_MIRROR"):
        choose_mirror(targets[:2])


def test_the_version_of_python_is_read_from_its_package() -> None:
    deb = LockedDeb(name="python3", version="3.13.5-1", architecture="all", path="a.deb", size=0, sha256="0" * 64)
    assert find_python([deb]) == "3.13"
    assert find_python([]) == ""


def test_what_differs_from_build_to_build_is_removed(tmp_path: Path) -> None:
    for name in ("etc", "var/log/apt", "var/cache/ldconfig", "run/lock", "tmp/x"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("etc/machine-id", "var/log/apt/history.log", "var/cache/ldconfig/aux-cache", "run/lock/a"):
        (tmp_path / name).write_text("now")
    (tmp_path / "var/log/link").symlink_to("/etc/passwd")
    (tmp_path / "var/tmp").symlink_to("/tmp")
    (tmp_path / "etc/shadow").write_text("root:*:20000:0:99999:7:::\ndamaged\n")
    remove_volatile(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert left == {"etc/shadow", "var/tmp"}
    assert (tmp_path / "var/log/apt").is_dir(), "a package may expect the folder"
    assert not list((tmp_path / "tmp").iterdir())
    assert (tmp_path / "etc/shadow").read_text() == "root:*:19675:0:99999:7:::\ndamaged\n"


def test_paths_of_an_image_stay_in_its_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    (tree / "out").symlink_to("/../../etc")
    (tree / "loop").symlink_to("loop")
    (tree / "file").touch()
    assert resolve_inside(tree, "/lib/x") == tree / "usr/lib/x"
    assert resolve_inside(tree, "/out/passwd") == tree / "etc/passwd"
    assert make_folder(tree, "/lib/../new/deep") == tree / "usr/new/deep"
    assert make_folder(tree, "/") == tree
    with pytest.raises(ImageInvalid, match="in a circle"):
        resolve_inside(tree, "/loop/x")
    with pytest.raises(ImageInvalid, match="/file of the image is no folder"):
        make_folder(tree, "/file/x")


def test_copied_files_belong_to_everybody_and_replace_what_is_there(tmp_path: Path) -> None:
    tree, source = tmp_path / "tree", tmp_path / "source"
    for folder in (tree / "app/sub", source / "src/sub"):
        folder.mkdir(parents=True)
    (source / "src/run").write_text("new")
    (source / "src/run").chmod(0o700)
    (source / "src/sub/data").write_text("data")
    (source / "src/link").symlink_to("run")
    (tree / "app/run").symlink_to("/etc/passwd")
    copy_files([(source, CopiedPath(source="src", target="/app"))], tree, Limits())
    assert (tree / "app/run").read_text() == "new"
    assert not (tree / "app/run").is_symlink()
    assert (tree / "app/run").stat().st_mode & 0o777 == 0o755
    assert (tree / "app/sub/data").stat().st_mode & 0o777 == 0o644
    assert str((tree / "app/link").readlink()) == "run"
    with pytest.raises(ImageInvalid, match="a folder there"):
        copy_files([(source, CopiedPath(source="src/run", target="/app/sub"))], tree, Limits())
    with pytest.raises(ImageInvalid, match="more than 1 files"):
        copy_files([(source, CopiedPath(source="src", target="/app"))], tree, Limits(max_files=1))


def test_compiled_files_are_taken_only_if_they_are_plain_and_have_a_place(tmp_path: Path) -> None:
    output = tmp_path / ".compiled"
    (output / "lib/pkg").mkdir(parents=True)
    (tmp_path / "lib/pkg").mkdir(parents=True)
    (output / "lib/pkg/good.cpython-313.pyc").write_text("code")
    (output / "lib/pkg/evil.cpython-313.pyc").symlink_to("/etc/shadow")
    (output / "lib/none").mkdir()
    (output / "lib/none/x.pyc").touch()
    if os.geteuid() != 0:
        pytest.skip("gives files to root")
    collect_compiled(output, tmp_path)
    assert [path.name for path in (tmp_path / "lib/pkg/__pycache__").iterdir()] == ["good.cpython-313.pyc"]
    assert not (tmp_path / "lib/none").exists()


def test_the_build_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path / "cache", 10_000)
    for number in range(3):
        file = tmp_path / "file"
        file.write_bytes(b"x" * 4000)
        cache.keep_deb(str(number) * 64, file)
        os.utime(tmp_path / f"cache/debs/{str(number) * 64}.deb", (number, number))
    cache.take_deb("0" * 64, tmp_path / "taken")
    with cache.in_use(), pytest.raises(ImageUnavailable, match="being built"):
        cache.clear()
    assert [cache.has_deb(str(number) * 64) for number in range(3)] == [True, False, True]
    (tmp_path / "cache/uv").mkdir()
    (tmp_path / "cache/uv/big").write_bytes(b"x" * 8000)
    cache.trim()
    assert not (tmp_path / "cache/uv").exists()
    assert cache.clear() > 0
    assert (tmp_path / "taken").read_bytes() == b"x" * 4000
