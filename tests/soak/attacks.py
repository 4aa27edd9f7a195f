"""All attacks by name, in the order of the table."""

from tests.soak import damage, disks, hostile, interruptions, numbers, users  # noqa: F401  (they register their attacks)
from tests.soak.cases import ATTACKS

__all__ = ["ATTACKS"]
