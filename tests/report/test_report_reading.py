"""Reports read back: what was written comes back, anything else is refused as the published schema says."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_reports import every_status, whole
from spikingbrain_hal.conformance import report
from spikingbrain_hal.conformance.report.claim import claim
from spikingbrain_hal.conformance.report.files import to_json
from spikingbrain_hal.conformance.report.reading import ReportError, parse
from spikingbrain_hal.conformance.report.schema import UNDERSTOOD, problems, schema
from spikingbrain_hal.conformance.verdict.record import Cell, Record, Status, Summary, Timing

DATA: dict[str, Any] = json.loads(to_json(every_status()))
VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$id"] == "urn:spikingbrain-hal:conformance-report:3"


@pytest.mark.parametrize("made", [every_status, whole])
def test_what_was_written_is_valid_and_comes_back(made: Any) -> None:
    text = to_json(made())
    VALIDATOR.validate(json.loads(text))
    assert to_json(parse(text, "it")) == text


def test_every_way_to_read(tmp_path: Path) -> None:
    paths = report.write(every_status(), tmp_path / "run")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "report.json").write_bytes(paths["json"].read_bytes())
    read = [report.read(p) for p in (paths["json"], tmp_path / "run", paths["bundle"], bare)]
    assert [to_json(r) for r in read] == [paths["json"].read_bytes()] * 4


def test_the_schema_names_every_field() -> None:
    """A field that is added is published too."""
    defined = schema()["$defs"]
    for name, kind in (("case", Record), ("cell", Cell), ("timing", Timing)):
        names = [f.name for f in fields(kind)] + ["mistrusted"] * (kind is Timing)
        assert (list(defined[name]["properties"]), defined[name]["required"]) == (names, names)
    assert list(schema()["properties"]["operators"]["items"]["properties"]) == [f.name for f in fields(Summary)]
    assert defined["case"]["properties"]["status"]["enum"] == [s.value for s in Status]
    assert DATA.keys() <= schema()["properties"].keys()
    assert set(schema()["required"]) <= DATA.keys()


def rules(rule: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema."""
    yield rule
    inner = [*rule.get("properties", {}).values(), *rule.get("$defs", {}).values()]
    for each in [*inner, *(rule[key] for key in ("items", "additionalProperties") if key in rule)]:
        yield from rules(each)


def test_the_schema_says_nothing_that_the_reader_does_not_understand() -> None:
    assert {key for rule in rules(schema()) for key in rule} <= UNDERSTOOD


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from paths(each, (*path, key))


PATHS = list(paths(DATA))
ODD = st.sampled_from([None, True, False, 0, 1, -1, 2.0, 2.5, 1e300, "", "pass", "x", [], {}, [1], {"x": None}])


JUDGED = {"passed", "complete", "counts", "interrupted", "problems", "cases"}


def _outcome(data: Any) -> str:
    """How the refusal begins, empty for a report that is read."""
    try:
        parse(json.dumps(data).encode(), "it")
    except ReportError as error:
        return str(error).partition(":")[0]
    return ""


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_the_reader_takes_what_the_schema_allows(data: st.DataObject) -> None:
    """One value replaced or taken out anywhere: reader and schema agree, and the reader has a sentence for it.

    What the schema cannot say, that a report agrees with its own cases, only the reader asks.
    """
    path = data.draw(st.sampled_from(PATHS).filter(bool), "path")
    changed = copy.deepcopy(DATA)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans(), "taken out"):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(ODD, "value")
    valid = VALIDATOR.is_valid(changed)
    assert valid == (next(problems(changed), None) is None)
    if valid:
        later = ["it is of operator set 2.0, this version knows up to 1"] if path[0] == "operator_set" else []
        assert _outcome(changed) in ["", *later, *(["it contradicts itself"] if path[0] in JUDGED else [])]
    else:
        with pytest.raises(ReportError, match=r"^it is "):
            parse(json.dumps(changed).encode(), "it")


def test_a_report_that_contradicts_its_cases_is_refused() -> None:
    twice = copy.deepcopy(DATA)
    twice["cases"].append(twice["cases"][0])
    for changed, message in (
        (twice, f"the case {DATA['cases'][0]['id']} is there 2 times"),
        (DATA | {"counts": DATA["counts"] | {"pass": 99}}, "it counts 99 cases as pass, and holds 3"),
        (DATA | {"counts": DATA["counts"] | {"fine": 7}}, "it counts 7 cases as fine, and holds 0"),
        (DATA | {"counts": {}}, "it counts 0 cases as pass, and holds 3"),
        (DATA | {"passed": True}, "it states passed as True, and its cases and problems say False"),
        (DATA | {"complete": True}, "it states complete as True, and its cases and problems say False"),
    ):
        with pytest.raises(ReportError) as refused:
            parse(json.dumps(changed).encode(), "it")
        assert str(refused.value) == f"it contradicts itself: {message}"


def test_a_whole_number_may_be_written_as_a_fraction() -> None:
    changed = copy.deepcopy(DATA)
    changed["operator_set"]["version"] = 1.0
    VALIDATOR.validate(changed)
    found = parse(json.dumps(changed).encode(), "it")
    assert str(claim(found)) == str(claim(every_status()))


def test_unknown_keys_are_read_past() -> None:
    later = copy.deepcopy(DATA)
    later["levels"] = {"reached": 3}
    later["cases"][0]["temperature"] = 80
    later["bench"]["timings"][0]["watts"] = 300
    VALIDATOR.validate(later)
    assert parse(json.dumps(later).encode(), "it").about["levels"] == {"reached": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("\ud800", "it is not JSON"),
        ("[]", "it is JSON, but not a report"),
        ("17", "it is JSON, but not a report"),
        ('{"name": "package", "version": "1.0"}', "it is JSON, but not a report"),
        (json.dumps(DATA | {"format": 2}), "it is of report format 2, this version reads 3: run the suite again"),
        (json.dumps(DATA | {"format": 4}), "it is of report format 4, this version reads 3: update spikingbrain-hal"),
        (json.dumps(DATA | {"format": "two"}), "it is of report format 'two'"),
        (
            json.dumps(DATA | {"operator_set": {"version": 2, "operators": {}}}),
            "it is of operator set 2, this version knows up to 1: update spikingbrain-hal",
        ),
        (json.dumps(DATA | {"cases": {}}), "the report.cases is object, expected array"),
        (json.dumps(DATA | {"seed": 7.5}), "the report.seed is number, expected integer"),
        (json.dumps(DATA | {"device": {"type": "cpu"}}), "the report.device has no 'name'"),
        (json.dumps(DATA).replace('"excused": 0', '"excused": -1', 1), "excused is -1, expected 0 to"),
        (json.dumps(DATA).replace('"status": "fail"', '"status": "failed"', 1), "'failed', expected one of pass, fail"),
        (json.dumps(DATA).replace('"seconds": 1.5', '"seconds": NaN'), "NaN is no JSON number"),
        (
            json.dumps(DATA).replace('"worst": 3.0', f'"worst": {10**400}'),
            "a whole number of 401 digits, more than 300",
        ),
        (json.dumps(DATA).replace('"seconds": 1.5', '"seconds": 1e999'), "1e999 is more than a float can hold"),
        (json.dumps(DATA)[:-1] + ', "more": ' + "[" * 300 + "]" * 300 + "}", "lists and objects lie more than 64 deep"),
        (json.dumps(DATA)[:-1] + ', "seed": 8}', "the key 'seed' is there twice"),
    ],
)
def test_what_is_no_report_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(ReportError) as refused:
        parse(text.encode("utf-8", "surrogatepass"), "it")
    assert message in str(refused.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path, missing in (
        (tmp_path / "x.json", tmp_path / "x.json"),
        (tmp_path / "x.tar.gz", tmp_path / "x.tar.gz"),
        (tmp_path, tmp_path / "report.json"),
    ):
        with pytest.raises(ReportError) as refused:
            report.read(path)
        assert str(refused.value) == f"{missing}: No such file or directory"
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ReportError, match=r"is not report.json, the folder of a run or its bundle"):
        report.read(tmp_path / "page.html")
