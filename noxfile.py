"""The project's checks, each in a fresh environment: `nox -l` lists them.

Packages are always tested from their built wheels, so a file that the wheel lacks or a dependency
that is not declared fails here and not at a user's. The environments are filled by uv, which
reads none of pip's configuration: `uv_variables` hands it over, so that a mirror or a folder of
wheels that pip knows serves both.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
REPORTS = ROOT / ".nox" / "reports"
LEAVES = ("walt-tokenizer", "walt-core", "probe-readouts", "probe-datasets")
PACKAGES = (*LEAVES, "probe-eval")
TESTED_EXTRAS = {"probe-datasets": ("video", "huggingface")}
# What a user of the models or the readouts alone must not be made to install.
HEAVY = {
    *("accelerate", "datasets", "diffusers", "pandas", "pyarrow", "scipy", "transformers"),
    *("av", "matplotlib", "rich", "torchcodec", "torchvision", "tyro"),
}

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.allow_parallel = True  # `nox --parallel auto`: a session for each processor
nox.options.reuse_venv = "no"  # a reused environment keeps the high versions of an earlier run
# The longest session first, so that none is left alone at the end.
nox.options.sessions = ["build", "integration", "unit", "alone", "types", "lint", "imports"]


# --- Packages and their wheels ---------------------------------------------------------------


def metadata(package: str) -> dict:
    """The parsed pyproject.toml of a package."""
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())


def wheel(package: str) -> str:
    """The path of a package's wheel, which the build session made."""
    (path,) = DIST.glob(f"{package.replace('-', '_')}-*.whl")
    return str(path)


def runtime_requirements(package: str) -> set[str]:
    """The names of what a package itself asks for, tested extras included."""
    project = metadata(package)["project"]
    lines = list(project["dependencies"])
    for extra in TESTED_EXTRAS.get(package, ()):
        lines += project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


# --- uv, told what pip knows -----------------------------------------------------------------


def pip_options() -> dict[str, str]:
    """What pip is configured with here, by option name: files first, PIP_* variables over them."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    layers: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.partition(".")
        if section in layers:
            layers[section][option] = str(ast.literal_eval(value))
    return layers["global"] | layers["install"] | layers[":env:"]


def local_build(requirement: Requirement, folders: Sequence[str]) -> str | None:
    """The pin of a local build (such as 2.13.0+cpu) of a pinned version, where a folder has one.

    uv would choose it too when it resolves to the highest version, but not to the lowest.
    """
    tags = set(sys_tags())
    for folder in map(Path, folders):
        for path in sorted(folder.glob("*+*.whl")):
            name, version, _, wheel_tags = parse_wheel_filename(path.name)
            wanted = name == canonicalize_name(requirement.name) and tags & wheel_tags
            if wanted and version in requirement.specifier:
                return f"{name}=={version}"
    return None


def write_constraints(path: Path, folders: Sequence[str], free: Collection[str]) -> None:
    """Write the pins of constraints.txt to `path`, less those of the names in `free`."""
    pins = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) not in free:
                pins.append(local_build(requirement, folders) or text)
    path.write_text("\n".join(pins) + "\n")


def uv_variables(temporary: Path, free: Collection[str] = ()) -> dict[str, str]:
    """The environment variables that make uv install from where pip would, under our pins.

    Variables of uv's own that are already set win, except that find-links and constraints add up.
    """
    pip = pip_options()
    folders = [*pip.get("find-links", "").split(), *filter(None, uv_list("UV_FIND_LINKS", ","))]
    constraints = temporary / "constraints.txt"
    write_constraints(constraints, [link.removeprefix("file://") for link in folders], free)
    given = {
        "UV_DEFAULT_INDEX": pip.get("index-url"),
        "UV_INDEX": pip.get("extra-index-url", "").replace("\n", " ").strip(),
        "UV_NO_INDEX": pip.get("no-index"),
        "UV_INSECURE_HOST": pip.get("trusted-host"),
        "UV_HTTP_TIMEOUT": pip.get("timeout") or pip.get("default-timeout"),
        "SSL_CERT_FILE": pip.get("cert"),
    }
    if given["UV_INDEX"]:  # as pip: the best version of all indexes, not of the first one
        given["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    variables = {name: os.environ.get(name) or value for name, value in given.items() if value}
    if folders:
        variables["UV_FIND_LINKS"] = ",".join(folders)
    extra = [*pip.get("constraint", "").split(), *uv_list("UV_CONSTRAINT", " ")]
    variables["UV_CONSTRAINT"] = " ".join([str(constraints), *extra])
    return variables


def uv_list(name: str, separator: str) -> list[str]:
    """The parts of a variable that uv reads as a list."""
    return [part for part in os.environ.get(name, "").split(separator) if part]


def prepare(session: nox.Session, free: Collection[str] = ()) -> Path:
    """Configure the session's uv and return its temporary directory."""
    temporary = Path(session.create_tmp()).resolve()
    session.env.pop(
        "TMPDIR", None
    )  # nox set it; sockets need a shorter path than a checkout's may be
    session.env.update(uv_variables(temporary, free))
    return temporary


def run_pytest(session: nox.Session, temporary: Path, tests: str, *options: str) -> None:
    """Run tests from a temporary directory, so that only what is installed can be imported."""
    name = "".join(c if c.isalnum() else "-" for c in session.name).strip("-")
    # Sessions side by side take a process each; a session that runs alone has the machine, and a
    # file's tests stay in one process, as they share fixtures that take long to make.
    processes = 0 if session.parallel else min(4, os.cpu_count() or 1)
    session.chdir(temporary)
    session.run(
        "pytest",
        str(ROOT / tests),
        f"--config-file={ROOT / 'pyproject.toml'}",
        f"--rootdir={ROOT}",
        f"--junit-xml={REPORTS / name}.xml",
        f"--numprocesses={processes}",
        "--dist=loadfile",
        *options,
        *session.posargs,
        env={
            # On tensors this small, threads mostly wait for each other.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # Or every process that a test starts would compile all of torch anew.
            "PYTHONDONTWRITEBYTECODE": None,
        },
    )


# --- Sessions --------------------------------------------------------------------------------


@nox.session(allow_parallel=False)
def build(session: nox.Session) -> None:
    """Build the five wheels into dist/."""
    prepare(session)
    shutil.rmtree(DIST, ignore_errors=True)
    for package in PACKAGES:
        session.run("uv", "build", "--quiet", "--wheel", f"--out-dir={DIST}", f"packages/{package}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code's rules and format with ruff; `-- --fix` mends what it can."""
    prepare(session)
    session.install("--group", "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def imports(session: nox.Session) -> None:
    """Check which package may import which, against the contracts of pyproject.toml."""
    prepare(session)
    session.install("--group", "imports")
    sources = [str(ROOT / "packages" / package / "src") for package in PACKAGES]
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": os.pathsep.join(sources)})


@nox.session(requires=["build"])
def types(session: nox.Session) -> None:
    """Check the types with pyrefly."""
    prepare(session)
    session.install("--group", "types", *map(wheel, PACKAGES))
    session.run("pyrefly", "check", *session.posargs)


@nox.session(requires=["build"])
@nox.parametrize(
    "packages",
    [nox.param([package], id=package) for package in PACKAGES]
    + [nox.param(["walt-core", "probe-readouts"], id="walt-core+probe-readouts")],
)
def alone(session: nox.Session, packages: list[str]) -> None:
    """Install a wheel with nothing beside it: it imports, and brings no sibling and no ballast."""
    prepare(session)
    siblings = LEAVES if "probe-eval" in packages else ()
    session.install(*map(wheel, {*packages, *siblings}))
    for package in packages:
        session.run("python", "-c", f"import {package.replace('-', '_')}")
    unwanted = set(PACKAGES) - {*packages, *siblings}
    if not {"probe-datasets", "probe-eval"} & set(packages):
        unwanted |= HEAVY
    listing = session.run("uv", "pip", "list", "--quiet", "--format=json", silent=True)
    installed = {canonicalize_name(row["name"]) for row in json.loads(str(listing))}
    session.log(f"installed: {' '.join(sorted(installed))}")
    if brought := installed & unwanted:
        session.error(f"{' and '.join(packages)} must not bring {', '.join(sorted(brought))}")


@nox.session(requires=["build"])
@nox.parametrize(
    "package, resolution",
    [
        nox.param(package, resolution, id=f"{package}-{label}", tags=[package, label])
        for package in reversed(PACKAGES)  # the longest first
        for resolution, label in (("highest", "highest"), ("lowest-direct", "lowest"))
    ],
)
def unit(session: nox.Session, package: str, resolution: str) -> None:
    """Test one package's wheel with pinned versions, or with the oldest that it declares."""
    # torch keeps its pin: a machine without a GPU has a CPU build of one version only.
    floors = runtime_requirements(package) - {"torch"} if resolution == "lowest-direct" else ()
    temporary = prepare(session, free=floors)
    pyproject = f"packages/{package}/pyproject.toml"
    extras = [f"--extra={extra}" for extra in TESTED_EXTRAS.get(package, ())]
    siblings = map(wheel, LEAVES) if package == "probe-eval" else ()
    # The floors are those of the pyproject.toml: for a wheel, uv would lower none of them.
    wanted = ["--resolution", resolution, "-r", pyproject, *extras, "--group", f"{pyproject}:test"]
    session.install(*wanted, *siblings, "pytest-xdist")
    session.install("--no-deps", wheel(package))
    session.run("uv", "pip", "check")
    options = []
    if resolution == "lowest-direct":
        # What takes long, and what other parameters of a test find, hangs on our code more than
        # on a dependency's age.
        session.env["PYTHONPATH"] = str(ROOT / ".ci")
        options = ["-m", "not slow", "-p", "first_parameters"]
    run_pytest(session, temporary, f"packages/{package}/tests", *options)


@nox.session(requires=["build"])
def integration(session: nox.Session) -> None:
    """Test the five wheels together: the tests of tests/."""
    temporary = prepare(session)
    session.install("--group", "test", *map(wheel, PACKAGES), "pytest-xdist")
    session.run("uv", "pip", "check")
    run_pytest(session, temporary, "tests")


@nox.session(requires=["build"])
def demo(session: nox.Session) -> None:
    """Run `probe-eval demo` on the CPU into results/demo; what follows `--` goes to it."""
    prepare(session)
    session.install(*map(wheel, PACKAGES))
    # Two processes of one thread: small models gain little from two threads of one process.
    processes = min(2, os.cpu_count() or 1)
    launcher = ["torchrun", "--standalone", f"--nproc-per-node={processes}", "-m", "probe_eval"]
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    session.run(*launcher, "demo", *session.posargs, env=variables)


@nox.session
def dev(session: nox.Session) -> None:
    """Install everything editable, for an editor or a command: `nox -s dev -- pytest tests`."""
    prepare(session)
    editable = [part for package in PACKAGES for part in ("-e", f"packages/{package}")]
    groups = ["--group", "lint", "--group", "types"]
    session.install(*editable, *groups)
    if session.posargs:
        session.run(*session.posargs)
