"""Module parameters are data: nothing in a file can become more than options of its own module."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Mapping

import pytest
from elf_files import module
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import write_tree

from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import UsageError
from nvdriver_build.loader.parameters import for_modules, modprobe_options, parse_line, read_parameters

LINES = st.text(alphabet=st.sampled_from('aZ_9-=, \t"\\\n\r\x00#;.%é$`install'), max_size=24)


def facts(folder: Path, name: str, *modinfo: str) -> ModuleFacts:
    path = folder / f"{name}.ko"
    path.write_bytes(module(modinfo=(f"name={name}", *modinfo)).build())
    return read_module(path, digest=False)


def shown_config(folder: Path, text: str) -> list[str]:
    """What the real modprobe makes of a configuration file, but for the kernel's own command line."""
    write_tree(folder, {"x.conf": text})
    argv = ("modprobe", "-C", str(folder), "-S", "none", "--showconfig")
    shown = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=True).stdout
    lines = [line for line in shown.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if line.split()[1].startswith(("nvidia", "other"))]


def test_files_of_all_modules_are_read(tmp_path: Path) -> None:
    """Each line is one or more parameters of the file's module; blank lines and # lines are passed over."""
    write_tree(
        tmp_path,
        {
            "nvidia.conf": "NVreg_EnableMSI=0\r\n\n# a note\n  NVreg_A=1\tNVreg_B=2 \n",
            "nvidia-uvm.conf": "uvm_debug_prints\nuvm_name='x'",
            "nvidia-modeset.conf": 'config_file="a file; and=more"',
            "nvidia-peermem.conf": "\n",
            "gridd.conf": "install nvidia /bin/evil\n",
        },
    )
    assert read_parameters(tmp_path) == {
        "nvidia": ("NVreg_EnableMSI=0", "NVreg_A=1", "NVreg_B=2"),
        "nvidia_uvm": ("uvm_debug_prints", "uvm_name='x'"),
        "nvidia_modeset": ('config_file="a file; and=more"',),
    }


def test_no_folder_means_no_parameters(tmp_path: Path) -> None:
    """Nobody has to mount the folder."""
    assert read_parameters(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("line", "flaw"),
    [
        ("NVreg_A=1\\", "it has a backslash"),
        ("NVreg_A=\x1b[31m", "it has a control character"),
        ("NVreg_A=1\x0binstall nvidia /bin/evil", "it has a control character"),
        ('NVreg_A="1', "a quote is not closed"),
        ('NVreg_A="1\t2"', "it has a tab in quotes, which modprobe would make a blank"),
        ("=1", "'=1' does not start with a name"),
        ("NVreg_A=1 -- x", "'--' does not start with a name"),
        ("/bin/evil", "'/bin/evil' does not start with a name"),
        ('"NVreg_A=1"', "'\"NVreg_A=1\"' does not start with a name"),
    ],
)
def test_line_that_is_no_parameter_is_refused(tmp_path: Path, line: str, flaw: str) -> None:
    """The message names file, line and flaw; nothing of the file is used."""
    write_tree(tmp_path, {"nvidia.conf": f"NVreg_Good=1\n{line}\n"})
    with pytest.raises(UsageError) as caught:
        read_parameters(tmp_path)
    assert caught.value.message == (
        f"{tmp_path}/nvidia.conf, line 2: {line!r} is not a module parameter: {flaw}"
    )
    assert caught.value.hint


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, or a folder in the file's place, are wrong usage."""
    write_tree(tmp_path, {"nvidia.conf": b"\xff\xfe"})
    with pytest.raises(UsageError, match=r"nvidia\.conf: cannot be read as module parameters") as caught:
        read_parameters(tmp_path)
    assert caught.value.hint
    write_tree(tmp_path / "b", {"nvidia-uvm.conf/x": ""})
    with pytest.raises(UsageError, match=r"nvidia-uvm\.conf: cannot be read"):
        read_parameters(tmp_path / "b")


def test_default_comes_first_where_the_module_has_it(tmp_path: Path) -> None:
    """NVreg_CoherentGPUMemoryMode=driver leads, so that the administrator's own value wins; 535 lacks it."""
    new = facts(tmp_path, "nvidia", "parmtype=NVreg_CoherentGPUMemoryMode:charp", "parmtype=NVreg_A:int")
    own: Mapping[str, tuple[str, ...]] = {"nvidia": ("NVreg_CoherentGPUMemoryMode=numa", "NVreg-A=1")}
    chosen, notices = for_modules(own, [new])
    assert chosen == {"nvidia": ("NVreg_CoherentGPUMemoryMode=driver", *own["nvidia"])}
    assert notices == ()
    assert for_modules({}, [new])[0] == {"nvidia": ("NVreg_CoherentGPUMemoryMode=driver",)}
    old = facts(tmp_path, "nvidia", "parmtype=NVreg_A:int")
    assert for_modules({}, [old]) == ({}, ())


def test_unknown_parameter_is_told(tmp_path: Path) -> None:
    """The kernel ignores a parameter that a module does not have: it is passed on, and told."""
    uvm = facts(tmp_path, "nvidia-uvm", "parm=uvm_debug:a text (int)", "parmtype=uvm_debug:int")
    chosen, notices = for_modules({"nvidia_uvm": ("uvm_debug=1", "uvm_debgu=1")}, [uvm])
    assert chosen == {"nvidia_uvm": ("uvm_debug=1", "uvm_debgu=1")}
    assert notices == ("nvidia_uvm has no parameter uvm_debgu: ignored",)


def test_parameters_of_modules_that_are_not_loaded_are_left_out(tmp_path: Path) -> None:
    """Only the modules at hand get options."""
    nvidia = facts(tmp_path, "nvidia")
    assert for_modules({"nvidia_peermem": ("x=1",)}, [nvidia]) == ({}, ())


def test_options_are_read_by_the_real_modprobe(tmp_path: Path) -> None:
    """modprobe reads the file as it is meant, quotes and semicolons included."""
    chosen = {"nvidia_uvm": ("a=1",), "nvidia": ('NVreg_RegistryDwords="RmA=1; RmB=0x2"', "NVreg_B")}
    assert shown_config(tmp_path, modprobe_options(chosen)) == [
        'options nvidia NVreg_RegistryDwords="RmA=1; RmB=0x2" NVreg_B',
        "options nvidia_uvm a=1",
    ]


@settings(max_examples=150, deadline=None)
@given(LINES)
def test_no_line_injects_a_directive(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    """Any text is refused, or reaches the real modprobe as options of its module, and as nothing else."""
    try:
        tokens = parse_line(line, "here")
    except UsageError as error:
        assert error.message.startswith(f"here: {line!r} is not a module parameter")
        return
    folder = tmp_path_factory.getbasetemp() / "injected"
    text = modprobe_options({"nvidia": tokens, "other": ("x=1",)}) if tokens else ""
    shown = shown_config(folder, text)
    assert shown == ([f"options nvidia {' '.join(tokens)}", "options other x=1"] if tokens else [])
    assert not line.strip() or line.strip().startswith("#") or tokens
