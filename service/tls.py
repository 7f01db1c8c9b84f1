"""The gRPC port's certificate: files named by the settings in, gRPC server credentials out.

The files are looked at again on every new connection, so that a certificate renewed in place (a mounted secret) is
used without a restart; one that cannot be read leaves the last good one in use. Never logs their content.
"""

import logging
from pathlib import Path

import grpc

from service.settings import Settings, SettingsError

_log = logging.getLogger(__name__)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Credentials that follow the files, None where the settings ask for no TLS. Raises `SettingsError`."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = _Files(certificate=settings.tls_certificate, key=settings.tls_key, client_ca=settings.tls_client_ca)
    try:
        first = files.read()
    except OSError as error:
        raise SettingsError(f"tls_certificate, tls_key or tls_client_ca cannot be read: {error}") from error
    return grpc.dynamic_ssl_server_credentials(
        first,
        files.changed,  # type: ignore[arg-type] # None means unchanged, says gRPC's documentation, not its types
        require_client_authentication=settings.tls_client_ca is not None,
    )


class _Files:
    """Reads them, and remembers which state of them was read."""

    def __init__(self, *, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._modified_ns: tuple[int, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        modified_ns = self._state()
        configuration = grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._certificate.read_bytes())],
            root_certificates=self._client_ca.read_bytes() if self._client_ca else None,
        )
        self._modified_ns = modified_ns
        return configuration

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate, None where nothing changed: what gRPC asks at every new connection."""
        try:
            return None if self._state() == self._modified_ns else self.read()
        except OSError as error:
            _log.warning("the TLS files cannot be read, the last ones stay in use: %s", error)
            return None

    def _state(self) -> tuple[int, ...]:
        paths = (self._certificate, self._key, self._client_ca)
        return tuple(path.stat().st_mtime_ns for path in paths if path is not None)
