"""Makes the session's served instance known to the integration tests."""

from serving import archives, server

__all__ = ["archives", "server"]
