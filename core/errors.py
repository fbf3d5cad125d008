"""Every error that Cloister raises on purpose, in one tree.

    CloisterError                     exit code 1
    |-- ConfigError                   2   a configuration file, an override or a flag
    |-- DataError                     1   a data file: names the file and the line
    |-- CheckpointError               1   a checkpoint is missing, truncated or altered
    |-- TokenizerError                1   a tokenizer file, or one that differs between the sites
    |-- MessageError                  1   what a peer sent does not parse or does not fit
    |-- TrainingError                 1   training cannot go on (a loss or an update is not finite)
    |-- RunError                      1   a run cannot start, go on or be resumed
    |   `-- QuorumError               1   too few sites
    |-- PrivacyError                  1   a guarantee cannot be given
    |   |-- UnsupportedLayerError     1   a trainable layer that per-sample clipping does not know
    |   |-- LossContractError         1   the loss couples the examples of a batch
    |   |-- AccountingError           1   epsilon cannot be computed, or two accountants disagree
    |   |-- SiteKeyError              1   a site's key file or a signature cannot be used
    |   |-- VaultError                1   what lies sealed on the disk cannot be opened or written
    |   |-- SecureAggregationError    1   an attempt at secure aggregation is broken off
    |   |   |-- BadSignatureError     1   a signature is missing, or not the site's
    |   |   |-- UnknownMemberError    1   a site that the roster does not have, or not as active
    |   |   |-- ContextMismatchError  1   a site was told something else than the others
    |   |   |-- AdvertAlteredError    1   a site's own advert came back altered, or not at all
    |   |   |-- RepeatedKeyError      1   a public key came twice
    |   |   |-- WeakKeyError          1   two keys agree on a secret that anyone knows
    |   |   |-- CohortTooSmallError   1   fewer sites than the threshold and the site's policy want
    |   |   |-- ThresholdError        1   the threshold does not exclude two sums
    |   |   |-- ModulusCapacityError  1   so many sites' sums can overflow
    |   |   |-- ShareUnopenedError    1   a sealed share does not open
    |   |   |-- OutOfOrderError       1   a message comes out of order, or again
    |   |   |-- SurvivorsError        1   survivors that did not deal, or without this site
    |   |   |-- ConfirmationError     1   too few confirm the same survivors, or one others
    |   |   |-- AlreadySpentError     1   an update that left the site would leave it again
    |   |   |-- CommitmentError       1   a revealed secret is not the one that was committed to
    |   |   |-- DeadlineError         1   a step comes after the attempt's deadline
    |   |   |-- ValueRangeError       1   a value is out of range, NaN or infinite
    |   |   |-- SumNormError          1   the opened sum is longer than its parts can be
    |   |   `-- NotDebitedError       1   an update without a debit in the ledger
    |   `-- LedgerError               1   the ledger cannot be trusted or cannot be written
    |       |-- LedgerTamperedError   1   an entry does not match its hash or signature
    |       `-- LedgerRollbackError   1   the ledger is shorter than its witnesses remember
    |-- IdentityError                 1   a certificate, key, token or roster is not what it must be
    |   `-- RosterRollbackError       1   a roster is older than one that was seen
    |-- SessionError                  1   the other side of the wire broke the protocol or is gone
    |   `-- TooManyError              1   more streams or calls than a peer may have
    |-- WorkerLostError               1   a process of a site's team died or hangs
    |-- ServiceError                  1   the coordinator's service or its folder cannot be used
    |-- AuditError                    1   a run cannot be audited, or a test's input cannot be used
    |   |-- SubjectError              1   a run directory, model or data set is not the run's
    |   |-- ScoreError                1   scores, labels or groups that no statistic can use
    |   `-- PackError                 1   a bias pack's file cannot be used
    |-- AttestationError              1   a report, a receipt or the log is not what was signed
    |   |-- LogTamperedError          1   the log was changed, cut or forked
    |   `-- SignerError               1   a signing key is unknown, expired or not yet valid
    |-- RoundFailedError              1   a site's round failed after its debit; its log says why
    `-- RefusedError                  3   a site said no
        |-- PolicyRefusedError        3   the task breaks the site's policy
        |-- BudgetExceededError       3   the task would pass the site's cap on epsilon
        `-- SiteStoppingError         3   the site's program is about to end

A message says what was expected and what was found; ``hint`` says what to do. Nothing else
escapes from reading a file or a message: a ``KeyError`` there is a defect of ours.
"""

import re
from typing import ClassVar


class CloisterError(Exception):
    """Root of the tree; ``str()`` gives the message and, where there is one, the hint."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """The error's stable name on the wire and in records, such as ``budget-exceeded``."""
        name = type(self).__name__.removesuffix("Error")
        return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigError(CloisterError):
    """A configuration file, an override or a flag cannot be used."""

    exit_code = 2


class DataError(CloisterError):
    """A data file cannot be used; the message names the file and the line."""


class CheckpointError(CloisterError):
    """A checkpoint or a pretrained folder is missing, truncated or altered."""


class TokenizerError(CloisterError):
    """A tokenizer cannot be read, or the sites do not share one."""


class MessageError(CloisterError):
    """What a peer sent does not parse, or does not fit what was asked."""


class TrainingError(CloisterError):
    """Training cannot go on."""


class RunError(CloisterError):
    """A run cannot start, go on or be resumed."""


class QuorumError(RunError):
    """Too few sites are there, or too few replies were usable."""


class PrivacyError(CloisterError):
    """A privacy guarantee cannot be given, so nothing is released."""


class UnsupportedLayerError(PrivacyError):
    """A trainable layer is not one whose per-sample gradients are known to be right."""


class LossContractError(PrivacyError):
    """The loss is not one value per example, or one example's loss depends on another."""


class AccountingError(PrivacyError):
    """Epsilon cannot be computed, or two accountants disagree."""


class SiteKeyError(PrivacyError):
    """A site's key file is missing, readable by others or no key, or a signature is not its."""


class VaultError(PrivacyError):
    """What lies encrypted on the disk cannot be opened or written."""


class SecureAggregationError(PrivacyError):
    """An attempt at secure aggregation is broken off, and nothing is opened."""


class BadSignatureError(SecureAggregationError):
    """A signature is missing, or not the site's."""


class UnknownMemberError(SecureAggregationError):
    """A site that the roster does not have, or not as active."""


class ContextMismatchError(SecureAggregationError):
    """A site was told something else than the others."""


class AdvertAlteredError(SecureAggregationError):
    """A site's own advert came back altered, or not at all."""


class RepeatedKeyError(SecureAggregationError):
    """A public key came twice."""


class WeakKeyError(SecureAggregationError):
    """Two keys agree on a secret that anyone knows."""


class CohortTooSmallError(SecureAggregationError):
    """Fewer sites than the threshold and the site's policy want."""


class ThresholdError(SecureAggregationError):
    """The threshold does not exclude two sums."""


class ModulusCapacityError(SecureAggregationError):
    """So many sites' sums can overflow."""


class ShareUnopenedError(SecureAggregationError):
    """A sealed share does not open."""


class OutOfOrderError(SecureAggregationError):
    """A message comes out of order, or again."""


class SurvivorsError(SecureAggregationError):
    """Survivors that did not deal, or without this site."""


class ConfirmationError(SecureAggregationError):
    """Too few confirm the same survivors, or one others."""


class AlreadySpentError(SecureAggregationError):
    """An update that left the site would leave it again."""


class CommitmentError(SecureAggregationError):
    """A revealed secret is not the one that was committed to."""


class DeadlineError(SecureAggregationError):
    """A step comes after the attempt's deadline."""


class ValueRangeError(SecureAggregationError):
    """A value is out of range, NaN or infinite."""


class SumNormError(SecureAggregationError):
    """The opened sum is longer than its parts can be."""


class NotDebitedError(SecureAggregationError):
    """An update without a debit in the ledger."""


class LedgerError(PrivacyError):
    """The ledger cannot be trusted, or cannot be written."""


class LedgerTamperedError(LedgerError):
    """An entry of the ledger does not match its hash or its signature."""


class LedgerRollbackError(LedgerError):
    """The ledger is shorter than its witnesses remember."""


class IdentityError(CloisterError):
    """A certificate, a key, a token, a signature or a roster is not what it must be."""


class RosterRollbackError(IdentityError):
    """A roster is older than one that was already seen."""


class SessionError(CloisterError):
    """The other side of the wire broke the protocol, said goodbye or is gone."""


class ServiceError(CloisterError):
    """The coordinator's service cannot do what is asked, or its folder cannot be used."""


class TooManyError(SessionError):
    """A peer has more streams, or calls more often, than it may."""


class WorkerLostError(CloisterError):
    """A process that works on a site's rounds died, hangs or does not start."""


class AuditError(CloisterError):
    """A run cannot be audited, or what a test is given cannot be used."""


class SubjectError(AuditError):
    """A run directory, a model or a data set is not the run's, or is not whole."""


class ScoreError(AuditError):
    """Scores, labels or groups that no statistic can use: NaN, all alike, or none at all."""


class PackError(AuditError):
    """A bias pack's file is missing or is not what it must be."""


class AttestationError(CloisterError):
    """A report, a receipt or the log is not what was signed."""


class LogTamperedError(AttestationError):
    """The log was changed, cut short, or continues another past than was signed."""


class SignerError(AttestationError):
    """A report's signing key is unknown, expired or not yet valid."""


class RoundFailedError(CloisterError):
    """A site's round failed after its debit; the reason stands in the site's own log only."""


class RefusedError(CloisterError):
    """A site refused: nothing was trained and nothing left the site."""

    exit_code = 3


class PolicyRefusedError(RefusedError):
    """The task breaks the site's policy."""


class BudgetExceededError(RefusedError):
    """The task would take the site past its cap on epsilon."""


class SiteStoppingError(RefusedError):
    """The site's program was told to end, and drops what it is asked."""
