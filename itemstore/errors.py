"""Every error of the store, in one tree; each knows its HTTP status and its stable code.

    ItemStoreError
    ├── InvalidInput             the caller sent something that cannot be stored or understood
    │   ├── MalformedRequest, MalformedJSON, InvalidId, InvalidCursor, InvalidParameter,
    │   │   InvalidETag, InvalidDurability, InvalidIdempotencyKey                  400
    │   ├── HeadTimeout, BodyTimeout                                               408
    │   ├── BodyTooLarge                                                           413
    │   ├── UnsupportedMediaType                                                   415
    │   └── InvalidItem, InvalidData, IdempotencyKeyReused                         422
    ├── Unauthenticated                                                            401
    ├── Forbidden, OriginNotAllowed                                                403
    ├── RouteNotFound, ItemNotFound, KeyNotFound                                   404
    ├── MethodNotAllowed                                                           405
    ├── QuotaExceeded                                                              403
    ├── ItemExists, TooManyKeys, IdempotencyInProgress                             409
    ├── PreconditionFailed                                                         412
    ├── QueryTooSlow                                                               422
    ├── RateLimited                                                                429
    ├── ItemQuarantined, InternalError                                             500
    ├── Unavailable              try again later; nothing was lost
    │   └── Overloaded, TooManyConnections, DatabaseUnavailable, CommitUnconfirmed,
    │       DurabilityUnavailable, IssuerUnavailable, Starting, Stopping           503
    ├── StartupError             the process cannot start; never an HTTP answer
    └── MovingError              an import or export cannot go on; never an HTTP answer
        └── WrongUsage           … as it was asked for

A class's docstring is its title; the message given when raising says what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ItemStoreError(Exception):
    """The store could not do what was asked."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    #: Seconds after which a repetition is worth a try; sent as ``Retry-After``.
    retry_after_s: int | None = None
    #: Why a caller's credentials do not do, in RFC 6750's words; sent as ``WWW-Authenticate``.
    challenge: str | None = None

    def __init__(self, detail: str | None = None, *, pointer: str | None = None) -> None:
        self.detail = detail or self.title()
        #: JSON pointer (RFC 6901) to the offending place of the request body, where one fits.
        self.pointer = pointer
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        return (cls.__doc__ or cls.__name__).partition("\n")[0]


class InvalidInput(ItemStoreError):
    """The request cannot be accepted as it is."""

    status = 400
    code = "invalid_input"


class MalformedRequest(InvalidInput):
    """The request is not valid HTTP."""

    code = "malformed_request"


class MalformedJSON(InvalidInput):
    """The body is not valid JSON."""

    code = "malformed_json"


class InvalidId(InvalidInput):
    """The id is not allowed."""

    code = "invalid_id"


class InvalidCursor(InvalidInput):
    """The cursor does not belong to this list."""

    code = "invalid_cursor"


class InvalidParameter(InvalidInput):
    """A query parameter is unknown or its value is not allowed."""

    code = "invalid_parameter"


class InvalidETag(InvalidInput):
    """The conditional header is not a list of entity tags."""

    code = "invalid_etag"


class InvalidDurability(InvalidInput):
    """The durability level is unknown."""

    code = "invalid_durability"


class InvalidIdempotencyKey(InvalidInput):
    """The idempotency key is not allowed."""

    code = "invalid_idempotency_key"


class HeadTimeout(InvalidInput):
    """The headers did not arrive in time."""

    status = 408
    code = "head_timeout"


class BodyTimeout(InvalidInput):
    """The body did not arrive in time."""

    status = 408
    code = "body_timeout"


class BodyTooLarge(InvalidInput):
    """The body or the item is too large."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(InvalidInput):
    """The body has a content type or an encoding that is not accepted here."""

    status = 415
    code = "unsupported_media_type"


class InvalidItem(InvalidInput):
    """The body is JSON but not an item."""

    status = 422
    code = "invalid_item"


class InvalidData(InvalidInput):
    """The data cannot be stored without changing it."""

    status = 422
    code = "invalid_data"


class IdempotencyKeyReused(InvalidInput):
    """The idempotency key belongs to another request."""

    status = 422
    code = "idempotency_key_reused"


class Unauthenticated(ItemStoreError):
    """The request does not say, so that it can be believed, who sends it."""

    status = 401
    code = "unauthenticated"
    challenge = 'Bearer realm="itemstore"'

    def __init__(self, detail: str | None = None, *, is_wrong: bool = False) -> None:
        """``is_wrong``: there are credentials, but they do not do (RFC 6750, section 3.1)."""
        super().__init__(detail)
        self.is_wrong = is_wrong
        if is_wrong:
            self.challenge = f'{self.challenge}, error="invalid_token"'


class Forbidden(ItemStoreError):
    """The caller may not do this."""

    status = 403
    code = "forbidden"
    challenge = 'Bearer realm="itemstore", error="insufficient_scope"'


class OriginNotAllowed(ItemStoreError):
    """Pages of this origin may not write here."""

    status = 403
    code = "origin_not_allowed"


class RouteNotFound(ItemStoreError):
    """There is nothing at this path."""

    status = 404
    code = "route_not_found"


class ItemNotFound(ItemStoreError):
    """There is no item with this id."""

    status = 404
    code = "item_not_found"


class KeyNotFound(ItemStoreError):
    """There is no key with this id."""

    status = 404
    code = "key_not_found"


class MethodNotAllowed(ItemStoreError):
    """This path does not know this method."""

    status = 405
    code = "method_not_allowed"


class QuotaExceeded(ItemStoreError):
    """There is no room left for this caller."""

    status = 403  # and not 507 or 429: the same again would end the same
    code = "quota_exceeded"


class ItemExists(ItemStoreError):
    """There is already an item with this id."""

    status = 409
    code = "item_exists"


class TooManyKeys(ItemStoreError):
    """There are as many keys as there may be."""

    status = 409
    code = "too_many_keys"


class IdempotencyInProgress(ItemStoreError):
    """A request with this idempotency key is being answered."""

    status = 409
    code = "idempotency_in_progress"
    retry_after_s = 1


class PreconditionFailed(ItemStoreError):
    """The item is not in the state the request demands."""

    status = 412
    code = "precondition_failed"


class QueryTooSlow(ItemStoreError):
    """The query takes longer than it may."""

    status = 422  # and not 503: the same again would take as long
    code = "query_too_slow"


class RateLimited(ItemStoreError):
    """There were too many requests."""

    status = 429
    code = "rate_limited"
    retry_after_s = 1


class ItemQuarantined(ItemStoreError):
    """PostgreSQL refused this item; it is served from memory and kept in quarantine."""

    code = "item_quarantined"


class InternalError(ItemStoreError):
    """The server made a mistake."""


class Unavailable(ItemStoreError):
    """Not now."""

    status = 503
    code = "unavailable"
    retry_after_s = 1


class Overloaded(Unavailable):
    """The write queue is full."""

    code = "overloaded"


class TooManyConnections(Unavailable):
    """There are as many connections as there may be."""

    code = "too_many_connections"


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer."""

    code = "database_unavailable"
    retry_after_s = 2


class CommitUnconfirmed(Unavailable):
    """The write is accepted, but PostgreSQL has not confirmed it in time."""

    code = "commit_unconfirmed"
    retry_after_s = 2


class NotHolder(Unavailable):
    """Another instance holds the writer lease."""

    code = "not_holder"


class LeaseLost(Unavailable):
    """Another instance took the writer lease before the write was committed."""

    code = "lease_lost"


class DurabilityUnavailable(Unavailable):
    """The durability level cannot be given now."""

    code = "durability_unavailable"
    retry_after_s = 5


class IssuerUnavailable(Unavailable):
    """The keys of the tokens' issuer cannot be had."""

    code = "issuer_unavailable"
    retry_after_s = 5


class Starting(Unavailable):
    """The store is starting."""

    code = "starting"


class Stopping(Unavailable):
    """The store is stopping."""

    code = "stopping"


class StartupError(ItemStoreError):
    """The store cannot start."""

    code = "startup_error"


class MovingError(ItemStoreError):
    """The import or export cannot go on."""

    code = "moving_error"


class WrongUsage(MovingError):
    """The import or export cannot be done as it was asked for."""

    code = "wrong_usage"
