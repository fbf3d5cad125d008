"""Real processes over real TLS: the sites of a finished run are asked for an audit's counts."""

import json
from pathlib import Path

import numpy as np

from audit.federated_counts import counts_for
from audit.subject import open_subject
from core.audit_messages import AUDIT_FILE
from privacy.ledger import Ledger
from tests.support.audited import AUDIT, COLUMNS, write_grouped
from tests.support.command import cloister
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION, SITES


def deploy(deployment: Deployment) -> None:
    """Sites whose records have groups; the one of the west answers no audit."""
    deployment.set_up()
    plain = 'columns = { text = "text", label = "label" }'
    for number, site in enumerate(SITES):
        write_grouped(deployment.folder / site / "records.jsonl", seed=number, count=40)
        file = deployment.site_file(site)
        text = file.read_text().replace(plain, COLUMNS)
        if site == "west":
            text = text.replace("[policy]", '[policy]\naudit = "off"')
        file.write_text(text)
    deployment.start_coordinator()
    deployment.status()
    for site in SITES:
        deployment.enrol(site)
        deployment.start_client(site)
    deployment.wait_connected(*SITES)


def test_connected_sites_are_asked_for_counts(tmp_path: Path) -> None:
    federation = FEDERATION.replace("num_rounds = 3", "num_rounds = 1") + AUDIT
    with Deployment(
        tmp_path / "deployed", federation=federation, forked=True, test_noise=False
    ) as deployment:
        deploy(deployment)
        run_id = deployment.run()
        deployment.wait_run(run_id)
        assert deployment.program("south").stop() == 0
        command = ("coordinator", "counts", "--run", run_id, "--folder", deployment.coordinator)

        done = deployment.ok(*command, "--json")
        status = json.loads(done.stdout)
        assert status["replied"] == ["north"]
        assert [line.split(":")[0] for line in status["absent"]] == ["south", "west"]
        assert "not-connected" in status["absent"][0]
        assert "policy-refused" in status["absent"][1]
        written = (deployment.coordinator / "runs" / run_id / AUDIT_FILE).read_bytes()

        # Nobody pays twice by accident.
        refused = cloister(*command)
        assert refused.returncode == 1
        assert "were not asked yet" in refused.stderr
        again = deployment.ok(*command, "--again")
        assert "counts of north" in again.stdout
        assert (deployment.coordinator / "runs" / run_id / AUDIT_FILE).read_bytes() != written

        # A run goes on as before, beside the audit's debits.
        deployment.wait_run(deployment.run())
        output = tmp_path / "exported"
        deployment.ok(
            "coordinator", "export", run_id,
            "--folder", deployment.coordinator, "--output", output,
        )  # fmt: skip
        for name in ("north", "west"):
            assert deployment.program(name).stop() == 0
        debits = {name: laplace_debits(deployment, name) for name in SITES}
        assert debits == {"north": [4.0] * 4, "south": [], "west": []}

    counts = counts_for(open_subject(output))
    assert counts is not None
    assert [site.site for site in counts.sites] == ["north"]
    assert counts.sites[0].scale == 4.0
    noise = np.sqrt(counts.noise_variance * counts.histogram.size)
    assert abs(int(counts.histogram.sum()) - 40) < 6 * noise
    check_report(deployment, output, tmp_path / "ann")


def check_report(deployment: Deployment, exported: Path, ann: Path) -> None:
    """The coordinator's auditor reports on what is at hand; a site signed the log."""
    deployment.ok("audit", "key", "--output", ann, "--name", "Ann", "--role", "auditor")
    audited = cloister(
        "audit", "run", exported, "--suite", "conformance", "--auditor", ann, "--json"
    )
    assert audited.returncode == 4, audited.stderr  # this suite proves no bound
    report = json.loads(audited.stdout)
    verdicts = {test["result"]["test"]: test["result"]["verdict"] for test in report["tests"]}
    assert verdicts.pop("C9") == "INCONCLUSIVE"  # two sites gave no counts
    assert set(verdicts.values()) == {"PASS"}
    folder = exported / "audit-conformance"
    verified = deployment.ok("audit", "verify", folder, "--trust", ann / "auditor.json", "--json")
    assert list(json.loads(verified.stdout)["cosigned"]) == ["north"]
    stranger = cloister("audit", "verify", folder, "--trust", "0" * 64)
    assert stranger.returncode == 1
    assert "signer: expected a signer whose key is trusted" in stranger.stderr


def laplace_debits(deployment: Deployment, site: str) -> list[float]:
    """The scales of a site's releases of counts."""
    path = deployment.folder / site / "ledger.sqlite"
    with Ledger.open(path, site=site) as ledger:
        bodies = [entry.body for entry in ledger.entries() if entry.kind == "reserve"]
    return [b["event"]["scale"] for b in bodies if b["event"]["kind"] == "laplace-counts"]
