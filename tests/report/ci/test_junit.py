from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from runner.progress.events import Event
from runner.report import job_report
from runner.report.ci import junit
from runner.report.ci.junit import Refused
from tests.report.jobs import gate, made

# What the schema that Jenkins and GitLab read allows: element → (attributes, children in their order).
SCHEMA: dict[str, tuple[set[str], list[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "disabled", "errors", "skipped"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": (
        {"name", "assertions", "time", "classname", "status"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "skipped": ({"message"}, []), "error": ({"type", "message"}, []), "failure": ({"type", "message"}, []),
    "system-out": (set(), []), "system-err": (set(), []),
}  # fmt: skip
FAILED: Event = {
    "event": "step_failed", "time": 3, "step": 1, "id": "prune", "kind": "prune.wanda", "error": "no memory\nat all",
    "help": "buy some", "exit_code": 4,
}  # fmt: skip


def read(text: str) -> ElementTree.Element:
    """The document, if it conforms; its counts are those of what it holds."""
    root = ElementTree.fromstring(text)
    for element in root.iter():
        attributes, children = SCHEMA[element.tag]
        assert set(element.attrib) <= attributes
        order = [children.index(child.tag) for child in element]
        assert order == sorted(order)
        if element.tag in ("testsuites", "testsuite"):
            found = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
            assert {name: int(element.attrib[name]) for name in found} == {
                name: len(list(element.iter(tag))) for name, tag in found.items()
            }
        if element.tag == "testcase":
            assert float(element.attrib["time"]) >= 0
    return root


def cases(root: ElementTree.Element) -> dict[str, list[str]]:
    return {case.attrib["name"]: [child.tag for child in case] for case in root.iter("testcase")}


def test_steps_and_gates(tmp_path: Path) -> None:
    events = [
        {"event": "step_cached", "time": 3, "step": 0, "id": "baseline", "kind": "evaluate.perplexity", "key": "k"},
        gate(4, "quality", 11.0, 10.5), gate(4, "quality", 2.4, 3.0, "loss"),
    ]  # fmt: skip
    plan = made(tmp_path, "gate-missed", events=events)
    root = read(junit.text([job_report.read(tmp_path, plan.job_id)]))
    assert cases(root) == {
        "baseline (evaluate.perplexity)": ["system-out"],
        "prune (prune.wanda)": ["system-out"],
        "distill (distill.logits)": ["system-out"],
        "gptq (quantize.gptq)": ["system-out"],
        "quality (evaluate.perplexity)": ["system-out"],
        "quality: perplexity at most 10.5": ["failure"],
        "quality: loss at most 3": [],
    }
    (failure,) = root.iter("failure")
    assert failure.attrib == {"message": "`perplexity` is 11, 0.5 above its limit 10.5", "type": "gate"}
    (suite,) = root
    assert (suite.attrib["name"], suite.attrib["timestamp"]) == ("demo", "2026-01-01T00:00:00")
    first = suite.findtext("testcase/system-out")
    assert first is not None
    assert first.splitlines()[0] == "cached, nothing was computed"


def test_a_failed_step_is_an_error_and_what_follows_is_skipped(tmp_path: Path) -> None:
    plan = made(tmp_path, "failed", done=1, events=[FAILED])
    root = read(junit.text([job_report.read(tmp_path, plan.job_id)]))
    (error,) = root.iter("error")
    assert (error.attrib, error.text) == (
        {"message": "no memory", "type": "machine"},
        "no memory\nat all\nhelp: buy some",
    )
    assert [tags[0] for tags in cases(root).values()] == ["system-out", "error", "skipped", "skipped", "skipped"]


def test_several_jobs_and_a_recipe_that_is_wrong(tmp_path: Path) -> None:
    plan = made(tmp_path)
    refused = Refused("bad.yaml", "bad.yaml:1:1: error[R103]: the recipe is empty\nhelp: write one", 2)
    root = read(junit.text([job_report.read(tmp_path, plan.job_id), refused, Refused("late.yaml", "", None)]))
    assert [suite.attrib["name"] for suite in root] == ["demo", "bad.yaml", "late.yaml"]
    assert (root.attrib["tests"], root.attrib["errors"], root.attrib["skipped"]) == ("7", "1", "1")
    (error,) = root.iter("error")
    assert error.attrib == {"message": "bad.yaml:1:1: error[R103]: the recipe is empty", "type": "recipe"}


def test_hostile_text(tmp_path: Path) -> None:
    text = "\x00\x1b[31m]]></failure><x/>&\ud800\uffff"
    root = read(junit.text([Refused(text, text, 1)]))
    assert root[0].attrib["name"] == "\ufffd\ufffd[31m]]></failure><x/>&\ufffd\ufffd"


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    junit.write(path, [Refused("a", "b", 1)])
    junit.write(path, [])
    assert read(path.read_text(encoding="utf-8")).attrib["tests"] == "0"
