"""tools/install.sh with a fake Python that records the calls of pip."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]

# Records every call of pip; `-m venv` copies this script into the new folder.
PYTHON = """#!/usr/bin/env bash
version=VERSION
self=$(readlink -f "$0")
case "$1 $2" in
    "-c import sys; print(sys.executable)") echo "${self}" ;;
    "-c import sys; print("*version_info*) echo "${version}" ;;
    "-m venv")
        prefix=${!#}
        rm -rf "${prefix}" && mkdir -p "${prefix}/bin"
        cp "${self}" "${prefix}/bin/python"
        echo "VIRTUAL_ENV=\"${prefix}\"" > "${prefix}/bin/activate"
        echo "venv ${version}" >> "${CALLS}" ;;
    "-m pip") echo "$*" >> "${CALLS}" ;;
    *check_install.py*) echo table ;;
esac
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Return a clone's root; PATH has the fake Python before the real ones."""
    root = tmp_path / "clone"
    shutil.copytree(
        ROOT / "tools",
        root / "tools",
        ignore=shutil.ignore_patterns("venv*", "activate_python.sh", ".install*.lock"),
    )
    shutil.copy(ROOT / "setup.py", root)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    write_python(binaries / "python3", "3.11")
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return root


def write_python(path: Path, version: str) -> Path:
    """Write a fake Python of a version."""
    path.write_text(PYTHON.replace("VERSION", version))
    path.chmod(0o755)
    return path


def install(root: Path, *arguments: str, installer: str = "install.sh"):
    """Run an installer; return its result and its calls of pip."""
    calls = root.parent / "calls"
    calls.write_text("")
    done = subprocess.run(
        [root / "tools" / installer, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, calls.read_text().splitlines()


def test_a_first_run_installs_by_hash_and_a_rerun_does_nothing(clone):
    done, calls = install(clone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("table\n")
    hashed = [call for call in calls if "--require-hashes" in call]
    for name in ("pip.txt", "base.txt", "espnet.txt"):
        assert any(name in call for call in hashed), name
    espnet = next(call for call in calls if "espnet.txt" in call)
    assert "--no-deps" in espnet
    # in one call, so that both are of the same build
    assert any("/torch.txt" in c and "/torchaudio.txt" in c for c in calls)

    assert install(clone)[1] == []
    done, calls = install(clone, "--if_stale", "true")
    assert (done.stdout, calls) == ("", [])


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ([], "3.11"),
        (["--espnet", "202511"], "3.11"),
        (["--espnet", "202611"], "3.13"),
        (["--python", "python3.12"], "3.12"),
        (["--python", "python3.12", "--espnet", "202611"], "3.12"),
    ],
)
def test_espnet_and_python_choose_the_environment(clone, options, version):
    for minor in (12, 13, 14):
        write_python(clone.parent / "bin" / f"python3.{minor}", f"3.{minor}")
    done, calls = install(clone, *options)
    assert done.returncode == 0, done.stderr
    assert calls[0] == f"venv {version}"
    assert install(clone, *options)[1] == install(clone)[1] == []


def copy_clone(clone: Path) -> Path:
    """Return a copy of the clone without its environments."""
    other = clone.parent / "other"
    shutil.copytree(
        clone / "tools", other / "tools", ignore=shutil.ignore_patterns("venv*")
    )
    shutil.copy(clone / "setup.py", other)
    return other


def test_environment_of_another_clone_is_not_emptied_through_a_link(clone):
    install(clone)
    other = copy_clone(clone)
    venv = clone / "tools/venv"
    (venv / "package.py").write_text("of the user")
    (other / "tools/venv").symlink_to(venv)
    for activated in (True, False):
        done, calls = install(other)
        assert done.returncode == 1 and calls == []
        assert f"is a link to {venv}, which is not replaced; remove" in done.stderr
        if activated:
            (other / "tools/activate_python.sh").unlink()
    assert (venv / "package.py").exists()


@pytest.mark.parametrize("linked", ["clone", "tools"])
def test_environment_is_kept_under_another_path(clone, linked):
    """As with an automounter, or a link to the folder of the clone."""
    install(clone)
    package = clone / "tools/venv/package.py"
    package.write_text("of the user")
    again = clone.parent / "again"
    if linked == "clone":
        again.symlink_to(clone)
    else:
        again.mkdir()
        (again / "tools").symlink_to(clone / "tools")
    done, calls = install(again, "--if_stale", "true")
    assert (done.returncode, calls) == (0, [])
    assert package.exists()


@pytest.mark.parametrize(
    "line", ["VIRTUAL_ENV='{}'", "    export VIRTUAL_ENV={}", 'VIRTUAL_ENV="{}"']
)
def test_environment_was_made_through_a_link(clone, line):
    """Older versions recorded the path by which they were called."""
    install(clone)
    again = clone.parent / "again"
    again.symlink_to(clone)
    venv = clone / "tools/venv"
    (venv / "bin/activate").write_text(line.format(again / "tools/venv") + "\n")
    stamp = venv / ".speechllm-installed"
    stamp.write_text(stamp.read_text().replace(str(clone), str(again)))
    done, calls = install(clone)
    assert done.returncode == 0 and calls
    assert not any(call.startswith("venv") for call in calls)
    assert install(again)[1] == []


def test_another_espnet_gets_a_new_environment(clone):
    write_python(clone.parent / "bin" / "python3.13", "3.13")
    install(clone)
    calls = install(clone, "--espnet", "202611")[1]
    assert calls[0] == "venv 3.13" and any("espnet.txt" in call for call in calls)
    assert install(clone, "--python", "python3")[1][0] == "venv 3.11"


@pytest.mark.parametrize(
    ("version", "options", "problem"),
    [
        ("3.12", ["--espnet", "202511"], "python3.x is Python 3.12"),
        ("3.13", ["--espnet", "202511"], "python3.x is Python 3.13"),
        ("3.11", ["--espnet", "202611"], "python3.x is Python 3.11"),
        ("3.10", [], "python3.x is Python 3.10"),
        ("3.14", [], "python3.x is Python 3.14"),
    ],
)
def test_pairs_that_do_not_fit_print_one_line(clone, version, options, problem):
    python = write_python(clone.parent / "bin" / "python3.x", version)
    done, calls = install(clone, "--python", str(python), *options)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, calls) == (1, [])
    needs = "ESPnet 202611 needs Python 3.12 or 3.13, 202511 needs 3.11"
    assert line == f"install.sh: error: --python {python.parent}/{problem}; {needs}"


def test_no_suitable_python_prints_one_line(clone):
    done, calls = install(clone, "--espnet", "202611")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, calls) == (1, [])
    assert "no suitable Python found (tried: python3 python3.13 python3.12" in line


def test_the_hashed_pins_have_both_versions_of_espnet():
    """Evaluate the markers as pip does."""
    folder = ROOT / "tools" / "requirements"
    pins = [
        Requirement(line.rstrip(" \\"))
        for name in ("base.txt", "espnet.txt")
        for line in (folder / name).read_text().splitlines()
        if "==" in line
    ]
    for python in ("3.11", "3.12", "3.13"):
        environment = {"python_version": python, "python_full_version": python + ".0"}
        found = {
            pin.name: next(iter(pin.specifier)).version
            for pin in pins
            if pin.marker is None or pin.marker.evaluate(environment)
        }
        if python == "3.11":
            assert found["espnet"] == "202511" and "omniio" not in found
        else:  # with what the metadata of 202611 require
            assert found["espnet"] == "202611" and "omniio" in found
            assert found["sentencepiece"] == "0.2.1"
            assert found["setuptools"] in SpecifierSet(">=77.0.3,<82")


def test_an_extra_is_added_to_an_environment(clone):
    install(clone)
    done, calls = install(clone, "--extras", "dev")
    assert done.returncode == 0
    assert len(calls) == 1
    assert "--require-hashes" in calls[0] and "dev.txt" in calls[0]
    assert install(clone, "--extras", "dev")[1] == []


def test_a_changed_requirement_is_installed(clone):
    install(clone)
    with open(clone / "tools" / "requirements" / "base.txt", "a") as stream:
        stream.write("new==1\n")
    assert any("base.txt" in call for call in install(clone)[1])


def test_a_moved_clone_gets_a_new_environment(clone):
    install(clone)
    moved = clone.with_name("moved")
    clone.rename(moved)
    assert "venv 3.11" in install(moved)[1]


@pytest.mark.parametrize(
    ("installer", "venv"),
    [("install.sh", "venv"), ("install_comet.sh", "venv-comet")],
)
def test_a_folder_of_the_user_is_not_replaced(clone, installer, venv):
    mine = clone / "tools" / venv / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    done, calls = install(clone, installer=installer)
    assert done.returncode == 1 and calls == []
    assert done.stderr.endswith("so it is not replaced; move it away\n")
    assert mine.read_text() == "years of work"
    # but one of a killed run is
    (clone / "tools" / f".{venv}.begun").touch()
    assert install(clone, installer=installer)[0].returncode == 0


def test_an_interrupted_run_is_resumed(clone):
    install(clone)
    (clone / "tools" / "venv" / ".speechllm-installed").unlink()
    calls = install(clone)[1]
    assert not any(call.startswith("venv") for call in calls)
    assert any("base.txt" in call for call in calls)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extra", "dev"], "unknown option '--extra'"),
        (["--extras"], "--extras needs a value"),
        (["--extras", "gpu"], "unknown extra 'gpu'"),
        (["--if_stale", "yes"], "takes true or false"),
        (["--python", "/bin/false"], "--python /bin/false: not a Python"),
        (["--espnet", "202501"], "--espnet takes 202611 or 202511, not '202501'"),
    ],
)
def test_invalid_options_print_one_line(clone, arguments, message):
    done, calls = install(clone, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert calls == []


def test_comet_gets_an_environment_of_its_own(clone):
    done, calls = install(clone, installer="install_comet.sh")
    assert done.returncode == 0, done.stderr
    assert calls[0] == "venv 3.11"
    locked = next(call for call in calls if "comet.txt" in call)
    assert "--require-hashes" in locked and "--no-deps" in locked
    assert "torch.txt" in calls[-1]
    assert (clone / "tools" / "venv-comet" / ".speechllm-installed").exists()
    assert not (clone / "tools" / "venv").exists()
    done, calls = install(clone, installer="install_comet.sh")
    assert calls == [] and "is complete" in done.stdout
    other = copy_clone(clone)
    (other / "tools/venv-comet").symlink_to(clone / "tools/venv-comet")
    again = clone.parent / "again"
    again.symlink_to(clone)
    for same in (other, again):
        done, calls = install(same, installer="install_comet.sh")
        assert calls == [] and "is complete" in done.stdout
    for folder in (clone, other):
        with open(folder / "tools" / "requirements" / "comet.txt", "a") as stream:
            stream.write("new==1\n")
    done, calls = install(other, installer="install_comet.sh")
    assert done.returncode == 1 and calls == []
    assert "is a link to" in done.stderr
    assert install(clone, installer="install_comet.sh")[1][0] == "venv 3.11"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extras", "dev"], "unknown option '--extras'"),
        (["--python"], "--python needs a value"),
        (["--python", "/bin/false"], "no Python 3.11 or 3.12"),
    ],
)
def test_invalid_options_of_the_comet_installer(clone, arguments, message):
    done, calls = install(clone, *arguments, installer="install_comet.sh")
    assert done.returncode == 1 and message in done.stderr
    assert calls == []


def test_commands_in_the_table_of_packages_are_accepted(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location(
        "check_install", ROOT / "tools/check_install.py"
    )
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    monkeypatch.setattr(table, "TOOLS", tmp_path)
    monkeypatch.setattr(table, "version", lambda package: None)
    monkeypatch.setattr(table, "gpus", lambda: None)
    assert table.main() == 1
    known = re.search(
        'unknown extra .*; there are: (.*)"', (ROOT / "tools/install.sh").read_text()
    )
    found = re.findall(
        r"not installed \(tools/(\S+?)(?: (.*))?\)", capsys.readouterr().out
    )
    assert ("install_comet.sh", "") in found
    for script, options in found:
        assert (ROOT / "tools" / script).exists()
        assert not options or options.split()[1] in known[1].split()


def test_the_hashed_files_have_the_pins_of_the_in_files():
    folder = ROOT / "tools" / "requirements"
    for source in folder.glob("*.in"):
        locked = source.with_suffix(".txt").read_text().lower().replace("_", "-")
        for line in source.read_text().splitlines():
            pin = re.split("[#;]", line)[0].strip().lower().replace("_", "-")
            if "==" in pin:
                assert pin in locked, f"{pin}: run tools/lock.sh"
        blocks = [block for block in locked.split("\n") if "==" in block]
        assert all(block.rstrip().endswith("\\") for block in blocks)
