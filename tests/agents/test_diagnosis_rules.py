"""What the embedded model finds by rules: causes and their consequences, and nothing where nothing is."""

from dataclasses import replace

import pytest

from agents.diagnosis.rules import causes_of, load_rules
from domain.diagnosis import Baseline, Change, Hazard, RiskLevel, Verdict
from domain.logs import Level, Quote
from tests.agents.diagnosing import Bench, LocalGateway, gathered

#: for each cause, the lines of one vehicle that show it, and what else its log has
SHOWN: dict[str, tuple[list[str], list[str]]] = {
    "ota_download_failed": (["chunk 14 download failed: connection timed out"], []),
    "ota_signature_invalid": (["package signature verification failed: certificate has expired"], []),
    "ota_brown_out": (["brown-out detected, vbat 5.9 V"], ["switching active slot to B"]),
    "ota_boot_failed": (["slot B failed health check after boot"], []),
    "ota_rollback": (["rolling back to slot A"], []),
    "disk_space_update": (["insufficient space for update package: 120 MB required"], []),
    "ota_battery_low": (["precondition failed: battery 14 % below required 30 %"], []),
    "ota_incompatible": (["campaign dependency not satisfied: needs base version 4.2"], []),
    "flight_mechanical_failure": (
        ["leaned further than the limit allows, ATT roll 178", "crash detected ERR, 12, 1"],
        [],
    ),
    "flight_underpowered": (["hardly climbed while level and at high throttle"], []),
    "flight_vibration": (["vibration beyond its limit"], []),
    "flight_compass": (["EKF variance in compass"], []),
    "flight_gps_loss": (["ERR, 11, 2", "GPS glitch"], []),
    "flight_battery_failsafe": (["battery failsafe"], []),
    "flight_radio_failsafe": (["throttle failsafe (radio contact lost)"], []),
    "flight_fence": (["fence breached"], []),
    "ssh_attack": (["sshd[1]: Failed password for invalid user admin from 10.0.0.1 port 22 ssh2"], []),
    "authentication_failed": (["login denied: token expired"], []),
    "out_of_memory": (["Out of memory: Killed process 812 (mapd)"], []),
    "disk_full": (["write failed: No space left on device"], []),
    "clock_jump": (["the clock went back by 3600 s"], []),
    "supply_low": (["supply voltage too low"], []),
    "watchdog_reset": (["watchdog timeout, resetting"], []),
    "storage_fault": (["flash write failed at sector 812: I/O error"], []),
    "kernel_panic": (["Kernel panic - not syncing: Fatal exception in interrupt"], []),
    "process_crash": (["navd[22]: segfault at 0 ip 0000"], []),
    "connection_failed": (["connect to broker 10.1.1.1 refused"], []),
    "permission_denied": (["open /var/lib/x: Permission denied"], []),
}


@pytest.mark.parametrize("cause_id", SHOWN)
def test_a_cause_is_found_by_its_lines_and_alone(cause_id: str) -> None:
    lines, common = SHOWN[cause_id]
    summary, _ = gathered({"V1": lines, "V2": []}, common=common)
    (finding,) = causes_of(summary)
    assert (finding.cause_id, finding.vehicles) == (cause_id, ("V1",))
    assert {each.text for each in finding.evidence} <= set(lines)
    assert finding.evidence
    assert finding.recommendations
    assert finding.explanation


def test_every_cause_has_a_case_here_and_no_cause_follows_itself() -> None:
    rules = load_rules()
    assert {each.id for each in rules.causes if not each.only_with} == set(SHOWN)
    for cause in rules.causes:
        ancestors, ahead = set[str](), {*cause.follows, *cause.part_of}
        while ahead:
            ancestors |= ahead
            ahead = {each for one in ahead for each in (*rules[one].follows, *rules[one].part_of)} - ancestors
        assert cause.id not in ancestors


@pytest.mark.parametrize(
    "line",
    [
        "download finished, 0 failed chunks, errors=0",
        "download started, timeout=30",
        "self-test passed",
        "signature valid, certificate accepted",
        "battery 80 %, above the required 30 %",
        "health check passed after boot of slot B",
        "rollback not needed",
    ],
)
def test_a_line_that_only_sounds_like_trouble_is_no_cause(line: str) -> None:
    summary, _ = gathered({"V1": [line]})
    assert causes_of(summary) == []


def failed_campaign() -> dict[str, list[str]]:
    """Twelve vehicles with three causes, and rollbacks that some of them bring about."""
    vehicles: dict[str, list[str]] = {f"V{number:02}": [] for number in range(1, 13)}
    for number in (1, 2, 3, 4):
        vehicles[f"V{number:02}"] = [
            f"chunk #{number} of 80: download timed out",
            "connection to cdn reset by peer",
        ]
    for number in (5, 6, 7):
        vehicles[f"V{number:02}"] = [
            "certificate not yet valid: signature rejected",
            "the clock went back by 90 d",
        ]
    for number in (8, 9):
        vehicles[f"V{number:02}"] = [
            "brown-out detected",
            "slot B not bootable",
            "rolling back to slot A",
            "restarted while it recorded",
        ]
    return vehicles


def test_several_causes_on_different_vehicles_are_several_findings_without_their_consequences() -> None:
    summary, _ = gathered(failed_campaign(), common=["switch slot"])
    found = {each.cause_id: each for each in causes_of(summary)}
    assert {name: each.vehicles for name, each in found.items()} == {
        "ota_brown_out": ("V08", "V09"),
        "ota_download_failed": ("V01", "V02", "V03", "V04"),
        "ota_signature_invalid": ("V05", "V06", "V07"),
    }
    texts = {each.text for each in found["ota_brown_out"].evidence}
    assert {"brown-out detected", "slot B not bootable"} <= texts, "consequences are evidence"
    explained = {code for each in found.values() for code in each.anomaly_codes}
    assert explained == {each.code for each in summary.anomalies}


def test_a_cause_that_came_after_is_not_what_brought_it_about() -> None:
    late = ["rolling back to slot A", "brown-out detected"]
    early, _ = gathered({"V1": late[::-1]}, common=["flash"])
    after, _ = gathered({"V1": late}, common=["flash"])
    assert [each.cause_id for each in causes_of(early)] == ["ota_brown_out"]
    assert {each.cause_id for each in causes_of(after)} == {"ota_brown_out", "ota_rollback"}


def test_logs_without_a_vehicle_are_told_apart() -> None:
    summary, _ = gathered(
        {"-a": SHOWN["flight_mechanical_failure"][0], "-b": SHOWN["flight_underpowered"][0]}
    )
    found = {each.cause_id: {quote.file_id for quote in each.evidence} for each in causes_of(summary)}
    assert found == {"flight_mechanical_failure": {"file-1"}, "flight_underpowered": {"file-2"}}


def test_what_is_gone_or_rarer_is_no_sign() -> None:
    summary, _ = gathered({"V1": SHOWN["ota_download_failed"][0]})
    gone = replace(summary.anomalies[0], change=Change.GONE)
    rarer = replace(summary.anomalies[0], change=Change.RATE, rate=1.0, baseline_rate=2.0)
    for each in (gone, rarer):
        assert causes_of(replace(summary, anomalies=(each,))) == []


async def test_a_failed_campaign_is_diagnosed_without_a_key_and_labelled_so() -> None:
    summary, logs = gathered(failed_campaign(), common=["switch slot"])
    bench = Bench(summary, logs, LocalGateway(), model="local")
    diagnosis = (await bench.diagnose()).diagnosis
    assert diagnosis.verdict is Verdict.ROOT_CAUSE
    assert diagnosis.findings[0].hazard is Hazard.UNBOOTABLE
    assert len(diagnosis.findings) == 3
    assert diagnosis.rule_based
    assert diagnosis.risk_level is RiskLevel.HIGH
    assert diagnosis.risk_rule
    assert diagnosis.unexplained == ()
    assert "".join(bench.deltas).strip().endswith(diagnosis.summary)
    again = Bench(summary, logs, LocalGateway(), model="local")
    assert (await again.diagnose()).diagnosis == diagnosis


async def test_a_healthy_batch_is_unremarkable_and_asks_nobody() -> None:
    summary, logs = gathered({"V1": [], "V2": []}, common=["ok"])
    bench = Bench(summary, logs, LocalGateway(), model="local")
    diagnosis = (await bench.diagnose()).diagnosis
    assert (diagnosis.verdict, diagnosis.risk_level, diagnosis.findings) == (Verdict.UNREMARKABLE, "none", ())
    assert bench.models.requests == []
    unread = replace(summary, parsed_lines=1, lines=100)
    diagnosis = (await Bench(unread, logs, LocalGateway()).diagnose()).diagnosis
    assert diagnosis.verdict is Verdict.INSUFFICIENT_EVIDENCE


@pytest.mark.parametrize(
    ("level", "verdict"),
    [(Level.ERROR, Verdict.INSUFFICIENT_EVIDENCE), (Level.INFO, Verdict.UNREMARKABLE)],
)
async def test_what_no_rule_explains_is_listed_and_counts_by_its_level(
    level: Level, verdict: Verdict
) -> None:
    summary, logs = gathered({"V1": ["the flux is inverted"]})
    summary = replace(summary, anomalies=(replace(summary.anomalies[0], level=level),))
    diagnosis = (await Bench(summary, logs, LocalGateway(), model="local").diagnose()).diagnosis
    assert (diagnosis.verdict, diagnosis.unexplained, diagnosis.findings) == (verdict, ("T-1",), ())


async def test_lines_are_looked_up_for_a_vehicle_that_the_summary_quotes_nothing_of() -> None:
    summary, logs = gathered({"V1": ["download of chunk failed"], "V2": ["download of chunk failed"]})
    only_first = replace(summary.anomalies[0], quotes=summary.anomalies[0].quotes[:1])
    bench = Bench(replace(summary, anomalies=(only_first,)), logs, LocalGateway(), model="local")
    (finding,) = (await bench.diagnose()).diagnosis.findings
    assert finding.vehicles == ("V1", "V2")
    assert {(each.file_id, each.line) for each in finding.evidence} == {("file-1", 1), ("file-2", 1)}
    assert bench.purposes() == ["investigate", "investigate", "conclude"]


def test_evidence_is_taken_from_as_many_vehicles_as_there_is_room_for() -> None:
    summary, _ = gathered({f"V{number}": ["chunk download failed"] * 3 for number in range(10)})
    (finding,) = causes_of(summary)
    assert len({each.file_id for each in finding.evidence}) == 10


def test_a_found_line_of_another_log_is_no_evidence_for_this_vehicle() -> None:
    summary, _ = gathered({"V1": ["chunk download failed"], "V2": []})
    found = (Quote(9, "chunk download failed", "file-2"),)
    (finding,) = causes_of(summary, found)
    assert finding.vehicles == ("V1",)
    assert {each.file_id for each in finding.evidence} == {"file-1"}


async def test_without_a_baseline_a_template_may_speak_for_itself() -> None:
    text = "sshd: Failed password for invalid user <*> from <*> port <*>"
    summary, logs = gathered({"V1": []}, common=[text])
    many = replace(summary.templates[0], count=500, quotes=(Quote(1, text, "file-1"),))
    summary = replace(summary, templates=(many,))
    bench = Bench(summary, logs, LocalGateway(), model="local")
    (finding,) = (await bench.diagnose()).diagnosis.findings
    assert (finding.cause_id, finding.vehicles) == ("ssh_attack", ("V1",))
    for usual in (
        replace(summary, templates=(replace(many, count=3),)),
        replace(summary, baseline=Baseline("batch-0")),
    ):
        diagnosis = (await Bench(usual, logs, LocalGateway(), model="local").diagnose()).diagnosis
        assert diagnosis.verdict is Verdict.UNREMARKABLE
