"""An OpenFeature provider: a boolean flag is on for the members of a cohort.

``pip install "./reader[openfeature]"``. The flag key is a cohort id, the targeting key is the user.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import (
    ErrorCode,
    FlagNotFoundError,
    GeneralError,
    TargetingKeyMissingError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata, ProviderStatus
from redis.exceptions import RedisError

from cohort_reader.answers import UNSET
from cohort_reader.errors import UNAVAILABLE_ERRORS, UnknownCohort
from cohort_reader.reader import Answer, AsyncCohortReader, CohortReader
from cohort_reader.steps import run, run_async

Object = Sequence[FlagValueType] | Mapping[str, FlagValueType]


class CohortProvider(AbstractProvider):
    """Evaluates boolean flags as "is the user in the cohort?".

    ============================ =====================================================
    member                       True, reason TARGETING_MATCH, variant ``member``
    not a member                 False, reason DEFAULT, variant ``not-member``
    from the reader's cache      reason CACHED
    stale, store unavailable     reason STALE; event PROVIDER_STALE
    store unavailable, no answer the caller's default, error GENERAL; event PROVIDER_ERROR
    cohort not in the store      the caller's default, error FLAG_NOT_FOUND
    no targeting key             the caller's default, error TARGETING_KEY_MISSING
    a flag of another type       the caller's default, error TYPE_MISMATCH
    ============================ =====================================================

    When the store answers again, the event is PROVIDER_READY. Flag metadata: ``ageSeconds``, and
    ``sinceMs`` of a member.

    Args:
        reader: with a :class:`CohortReader`, asynchronous evaluations run in threads; with an
            :class:`AsyncCohortReader`, only asynchronous evaluations work, on its event loop.
    """

    def __init__(self, reader: CohortReader | AsyncCohortReader) -> None:
        super().__init__()
        self._reader = reader
        self._status = ProviderStatus.READY

    def get_metadata(self) -> Metadata:
        return Metadata(name="cohort-reader")

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        if isinstance(self._reader, AsyncCohortReader):
            raise GeneralError("an AsyncCohortReader evaluates only with get_…_async")
        user_id = _user_id(evaluation_context)
        try:
            answer = run(self._reader._membership(user_id, flag_key, UNSET, strict=True))
        except (UnknownCohort, RedisError, *UNAVAILABLE_ERRORS) as error:
            self._fail(error)
        return self._details(answer)

    async def resolve_boolean_details_async(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        if isinstance(self._reader, CohortReader):
            return await asyncio.to_thread(
                self.resolve_boolean_details, flag_key, default_value, evaluation_context
            )
        user_id = _user_id(evaluation_context)
        try:
            steps = self._reader._membership(user_id, flag_key, UNSET, strict=True)
            answer = await run_async(steps)
        except (UnknownCohort, RedisError, *UNAVAILABLE_ERRORS) as error:
            self._fail(error)
        return self._details(answer)

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        _refuse(flag_key)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        _refuse(flag_key)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        _refuse(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Object,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Object]:
        _refuse(flag_key)

    def _details(self, answer: Answer | None) -> FlagResolutionDetails[bool]:
        if answer is None:
            raise AssertionError("only a default is None")
        if answer.stale:
            self._become(ProviderStatus.STALE)
        elif not answer.age_seconds:  # the cache answers whether or not the store is available
            self._become(ProviderStatus.READY)
        is_member = answer.value is not None
        if answer.stale:
            reason = Reason.STALE
        elif answer.age_seconds:
            reason = Reason.CACHED
        else:
            reason = Reason.TARGETING_MATCH if is_member else Reason.DEFAULT
        metadata: dict[str, Any] = {"ageSeconds": answer.age_seconds}
        if is_member:
            metadata["sinceMs"] = answer.value
        return FlagResolutionDetails(
            value=is_member,
            variant="member" if is_member else "not-member",
            reason=reason,
            flag_metadata=metadata,
        )

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, UnknownCohort):  # the store has answered
            self._become(ProviderStatus.READY)
            raise FlagNotFoundError(str(error)) from error
        self._become(ProviderStatus.ERROR, str(error))
        raise GeneralError(f"the store failed: {error}") from error

    def _become(self, status: ProviderStatus, message: str = "") -> None:
        if status is self._status:
            return
        self._status = status
        if status is ProviderStatus.READY:
            self.emit_provider_ready(ProviderEventDetails())
        elif status is ProviderStatus.STALE:
            self.emit_provider_stale(ProviderEventDetails(message="the store is unavailable"))
        else:
            details = ProviderEventDetails(message=message, error_code=ErrorCode.GENERAL)
            self.emit_provider_error(details)


def _user_id(context: EvaluationContext | None) -> str:
    if context is None or not context.targeting_key:
        raise TargetingKeyMissingError("the targeting key, which is the user id, is missing")
    return context.targeting_key


def _refuse(flag_key: str) -> NoReturn:
    raise TypeMismatchError(f"{flag_key!r} is a cohort: only boolean flags are supported")
