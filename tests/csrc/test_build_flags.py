"""What the build finds out: the CUDA runtime, also where nvcc is a script; the instruction set."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import build_flags

VERSION = "13.0"


def script(path: Path, says: str) -> str:
    """A compiler that says this of itself."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\n")
    path.chmod(0o755)
    return str(path)


def library(folder: Path, name: str = "libcudart.so") -> Path:
    folder.mkdir(parents=True)
    (folder / name).touch()
    return folder / name


def found(tmp_path: Path, nvcc: str) -> Path:
    packages = tmp_path / "packages"
    folders = build_flags.runtime_folders(tmp_path / "usr", nvcc, packages, VERSION)
    return build_flags.runtime_library(folders, VERSION)


@pytest.fixture
def nvcc(tmp_path):
    """A script in a folder that holds no library, which calls the compiler of a toolkit."""
    says = f"#$ _HERE_=x\n#$ TOP={tmp_path}/cuda/bin/..\n#$ PATH=y"
    return script(tmp_path / "usr" / "bin" / "nvcc", says)


@pytest.mark.parametrize("folder", ["lib64", "lib"])
def test_a_library_beside_nvcc_comes_first(tmp_path, nvcc, folder):
    beside = library(tmp_path / "usr" / folder)
    library(tmp_path / "cuda" / "lib64")
    assert found(tmp_path, nvcc) == beside


@pytest.mark.parametrize("folder", ["lib64", "lib"])
def test_the_toolkit_that_nvcc_names_comes_next(tmp_path, nvcc, folder):
    named = library(tmp_path / "cuda" / folder)
    library(tmp_path / "packages" / "nvidia" / "cu13" / "lib", "libcudart.so.13")
    assert found(tmp_path, nvcc).samefile(named)


@pytest.mark.parametrize("package", ["cu13", "cuda_runtime"])
def test_the_runtime_that_came_with_torch_comes_last(tmp_path, nvcc, package):
    came = library(tmp_path / "packages" / "nvidia" / package / "lib", "libcudart.so.13")
    assert found(tmp_path, nvcc) == came


def test_a_compiler_that_names_no_toolkit_leaves_the_others(tmp_path):
    came = library(tmp_path / "packages" / "nvidia" / "cu13" / "lib", "libcudart.so.13")
    assert found(tmp_path, script(tmp_path / "usr" / "bin" / "nvcc", "nothing")) == came
    assert found(tmp_path, str(tmp_path / "not there")) == came


def test_another_version_of_the_runtime_is_not_taken(tmp_path, nvcc):
    library(tmp_path / "packages" / "nvidia" / "cuda_runtime" / "lib", "libcudart.so.12")
    with pytest.raises(FileNotFoundError, match=r"no libcudart\.so .*cu13.*; set CUDA_HOME"):
        found(tmp_path, nvcc)


def test_the_linker_finds_a_library_whose_name_ends_in_its_version(tmp_path):
    versioned = library(tmp_path / "lib", "libcudart.so.13")
    for _ in range(2):
        folder = build_flags.link_folder(versioned, tmp_path / "build")
        assert (folder / "libcudart.so").resolve() == versioned
    plain = library(tmp_path / "lib64")
    assert build_flags.link_folder(plain, tmp_path / "build") == plain.parent


AVX512 = [f"__AVX512{part}__" for part in ("F", "BW", "DQ", "VL")]


@pytest.mark.parametrize(
    "macros,expected",
    [
        ([], "baseline"),
        (["__AVX__", "__AVX2__"], "baseline"),
        (["__AVX2__", "__FMA__"], "avx2"),
        (["__AVX2__", "__FMA__", *AVX512[:-1]], "avx2"),
        (["__AVX2__", "__FMA__", *AVX512], "avx512"),
    ],
    ids=["none", "avx2 without fma", "avx2", "a part of avx512", "avx512"],
)
def test_a_build_for_this_machine_is_of_the_best_set_that_its_compiler_names(
    tmp_path, macros, expected
):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n" + "".join(f"echo '#define {name} 1'\n" for name in macros))
    compiler.chmod(0o755)
    assert build_flags.native_target(str(compiler)) == expected


SAYS = "#include <sstream>\nint main() { std::ostringstream s; s << 1; return s.str().size() - 1; }"


@pytest.fixture
def static_compiler(tmp_path):
    """A wrapper of the C++ compiler that links C++'s own library statically."""
    path = tmp_path / "static-c++"
    path.write_text('#!/bin/sh\nexec c++ "$@" -static-libstdc++\n')
    path.chmod(0o755)
    return str(path)


def needed(compiler: str, tmp_path: Path, *flags: str) -> str:
    """The shared libraries that a program of this compiler asks for."""
    (tmp_path / "says.cpp").write_text(SAYS)
    program = str(tmp_path / "says")
    subprocess.run([compiler, tmp_path / "says.cpp", "-o", program, *flags], check=True)
    subprocess.run([program], check=True)
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    return listed.stdout


def test_the_library_of_cpp_is_shared_where_a_compiler_links_its_own(tmp_path, static_compiler):
    assert "libstdc++" not in needed(static_compiler, tmp_path)
    flags = build_flags.shared_runtime(static_compiler)
    assert "libstdc++.so.6" in needed(static_compiler, tmp_path, *flags)


def test_a_compiler_with_another_library_of_cpp_is_asked_for_nothing(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho ${1#-print-file-name=}\n")
    compiler.chmod(0o755)
    assert build_flags.shared_runtime(str(compiler)) == []


def test_the_instruction_sets_are_those_of_the_source_in_its_order():
    source = (Path(build_flags.__file__).parent / "csrc/cpu/simd_types.h").read_text("utf-8")
    names = re.search(r"kTargetNames\[\] = \{(.*?)\}", source)
    assert names and re.findall(r'"(\w+)"', names[1]) == list(build_flags.CPU_TARGETS)
