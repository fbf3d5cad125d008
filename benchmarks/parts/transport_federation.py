# ruff: noqa: E402  (allocator, TLS and telemetry are set before anything heavy is imported)
"""What both ends of the transport benchmark share: identities, weights, orders.

Import it first: as the command does, it sets the allocator, requires TLS 1.3 and keeps libraries
from calling home before gRPC, Flower and torch are imported.
"""

import os

from core.allocator import keep_freed_memory
from core.wire.channel import quiet_grpc, require_tls13

keep_freed_memory()
require_tls13()
quiet_grpc()
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import numpy as np

from client.identity_folder import IdentityFolder
from core.array_codec import ArraySpec, Encoded, Manifest, manifest_of
from core.config_sections import PrivacySection, TaskSection
from core.digests import ArraysDigest
from core.messages import LedgerHead, SpentBudget, TrainingTerms, TrainReply, TrainTask
from core.model import ModelConfig
from core.site_config import IdentitySection
from core.train import TrainConfig
from core.wire.documents import Invitation, Roster, RosterMember, SignedRoster
from privacy.identities.authority import Authority, create_authority
from privacy.identities.clock import utc_now, write_timestamp
from privacy.identities.names import server_tls_name, site_tls_name
from privacy.identities.roster import sign_roster
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey

FEDERATION = "benchmark"
MEGABYTE = 1_000_000


def site_name(number: int) -> str:
    """The name of the site with this number."""
    return f"site{number}"


def _shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Tensors like a Transformer's: one has a fifth of all bytes, sixteen share the rest."""
    rest = size // 4 - size // 20
    shapes: dict[str, tuple[int, ...]] = {"embedding": (size // 20 // 64, 64)}
    return shapes | {f"layer{number:02}": (rest // 16,) for number in range(16)}


def weights_manifest(size: int) -> Manifest:
    """What the weights look like: ``size`` bytes of fp32."""
    zero, shapes = np.float32(0), _shapes(size)
    return manifest_of({name: np.broadcast_to(zero, shape) for name, shape in shapes.items()})


def weights_digest(size: int) -> str:
    """``core.digests.arrays_digest`` of the weights, which are made piece by piece."""
    digest, generator = ArraysDigest(), np.random.default_rng(0)
    for name, spec in weights_manifest(size).items():
        digest.begin(name, spec.dtype, spec.shape)
        for piece in _pieces(spec, generator):
            digest.update(piece)
    return digest.digest().hex()


def encoded_weights(size: int) -> dict[str, Encoded]:
    """The weights as they travel. No tensor is there twice, so that peaks are of the transport."""
    encoded, generator = {}, np.random.default_rng(0)
    for name, spec in weights_manifest(size).items():
        target = BytesIO(bytes(spec.payload_bytes))
        target.write(spec.header)
        for piece in _pieces(spec, generator):
            target.write(piece)
        encoded[name] = Encoded("float32", spec.shape, "numpy.ndarray", target.getvalue())
    return encoded


def _pieces(spec: ArraySpec, generator: np.random.Generator) -> Iterator[memoryview]:
    left = (spec.payload_bytes - len(spec.header)) // 4
    while left:
        count = min(left, 1 << 18)
        left -= count
        piece = generator.standard_normal(count, dtype=np.float32)
        yield piece.view(np.uint8).data


@dataclass
class Members:
    """A federation of sites that all have joined, on this machine."""

    authority: Authority
    admin: SiteKey
    roster: SignedRoster
    folders: dict[str, IdentityFolder]

    def pin(self, port: int, enrolment_port: int) -> None:
        """Writes down at every site where the coordinator is."""
        for name, folder in self.folders.items():
            folder.pin_membership(
                Invitation(
                    federation=FEDERATION,
                    site=name,
                    num_examples=1,
                    token="0" * 32,
                    expires=self.roster.roster.expires,
                    address=f"127.0.0.1:{port}",
                    enrolment_address=f"127.0.0.1:{enrolment_port}",
                    server_name=server_tls_name(FEDERATION),
                    ca_pem=self.authority.root_pem,
                    admin_key=self.admin.public_hex,
                    tls_name=site_tls_name(FEDERATION, name),
                )
            )


def found_federation(folder: Path, sites: int) -> Members:
    """Makes keys, certificates and the roster; ``folder/NAME`` is a site's identity."""
    now = utc_now()
    authority, admin, folders, members = (
        create_authority(FEDERATION, now),
        SiteKey.generate(),
        {},
        [],
    )
    for name in map(site_name, range(sites)):
        identity = IdentityFolder(IdentitySection(folder=folder / name))
        identity.make_keys()
        tls_name = site_tls_name(FEDERATION, name)
        chain = authority.issuing.issue(identity.tls_key(), tls_name, "client", 24, now)
        identity.keep_certificate(chain)
        node_key = identity.node_key().public_hex
        members.append(
            RosterMember(name=name, node_key=node_key, tls_name=tls_name, num_examples=1)
        )
        folders[name] = identity
    roster = Roster(
        federation=FEDERATION,
        epoch=1,
        issued=write_timestamp(now),
        expires=write_timestamp(now + timedelta(days=1)),
        members=tuple(sorted(members, key=lambda member: member.name)),
    )
    signed = sign_roster(roster, admin)
    for identity in folders.values():
        identity.pin_roster(signed)
    return Members(authority, admin, signed, folders)


def server_certificate(authority: Authority) -> tuple[bytes, bytes]:
    """The coordinator's key and chain, as PEM."""
    key, name = TlsKey.generate(), server_tls_name(FEDERATION)
    chain = authority.issuing.issue(key, name, "server", 24, utc_now())
    return key.private_pem(), chain.encode("ascii")


def order(server_round: int, arrays_digest: str) -> TrainTask:
    """The order of a round; its terms say nothing that matters here."""
    terms = TrainingTerms(
        federation=FEDERATION,
        model=ModelConfig(vocab_size=8, max_seq_len=4, n_layer=1, n_head=1, n_embd=4),
        base_digest="0" * 64,
        tokenizer_digest="0" * 64,
        task=TaskSection(kind="causal-lm"),
        train=TrainConfig(steps_per_round=1, global_batch_size=1, learning_rate=0.1),
        privacy=PrivacySection(mode="none"),
        proximal_mu=0.0,
        num_rounds=1_000_000,
        update_encoding="fp32",
    )
    return TrainTask(
        run_id="0" * 16,
        server_round=server_round,
        attempt=1,
        site=site_name(0),
        arrays_digest=arrays_digest,
        terms=terms,
        task_digest=terms.digest(),
        num_examples=1,
    )


def reply_to(task: TrainTask, arrays_digest: str) -> TrainReply:
    """What a site answers."""
    return TrainReply(
        run_id=task.run_id,
        server_round=task.server_round,
        attempt=task.attempt,
        site=task.site,
        task_digest=task.task_digest,
        arrays_digest=arrays_digest,
        num_examples=task.num_examples,
        spent=SpentBudget(epsilon=None, delta=1e-5, private=False),
        ledger_head=LedgerHead(sequence=task.server_round, digest="0" * 64),
    )


def peak_rss() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
