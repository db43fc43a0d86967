"""Which failures of a model may pass, and how long they are waited for."""

from __future__ import annotations

import errno

import pytest

import quick_model_loader as qml
from aegaeon.memory.page_pool import OutOfPagesError
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailures, ModelProblem, failure_kind


def raised_from(cause: BaseException) -> BaseException:
    error = RuntimeError("wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOENT, errno.ESTALE, errno.EIO])
def test_what_the_system_refuses_may_be_granted_later(number: int):
    assert failure_kind(OSError(number, "no")) is FailureKind.TRANSIENT
    assert failure_kind(qml.IoError("no", None, errno=number)) is FailureKind.TRANSIENT
    assert failure_kind(raised_from(raised_from(OSError(number, "no")))) is FailureKind.TRANSIENT


@pytest.mark.parametrize(
    "error", [MemoryError(), OutOfPagesError("m", 2, 1, 8, 4096), qml.ChangedError("changed", None)]
)
def test_what_is_full_or_changing_just_now_passes(error: BaseException):
    assert failure_kind(raised_from(error)) is FailureKind.TRANSIENT


@pytest.mark.parametrize(
    "error",
    [qml.HeaderError("bad", None), qml.TruncatedError("short", None), ValueError("x"), IsADirectoryError(21, "")],
)
def test_files_that_are_wrong_stay_wrong(error: BaseException):
    assert failure_kind(error) is FailureKind.FILES


def test_pauses_grow_until_the_model_works_and_have_an_end():
    failures, now_s, pauses = ModelFailures(), 0.0, []
    for _ in range(9):
        now_s = failures.fail("m", ModelProblem("no", FailureKind.TRANSIENT), now_s).retry_s
        pauses.append(failures.retry_after_s("m", 0.0))
        failures.recover("m")
    steps = [after - before for before, after in zip([0.0, *pauses], pauses, strict=False)]
    assert steps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    failures.works("m")
    assert failures.fail("m", ModelProblem("no", FailureKind.TRANSIENT), 0.0).retry_s == 1
