"""All that speaks to Redis. What each key holds is in ``docs/data-model.md``."""

from app.store.client import connect
from app.store.errors import StoreError
from app.store.rates import Rates
from app.store.store import Applied, Store

__all__ = ["Applied", "Rates", "Store", "StoreError", "connect"]
