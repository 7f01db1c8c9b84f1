"""The certificate of the gRPC port: files named by the settings in, gRPC server credentials out.

The files are checked at every new connection. So a certificate that is renewed in place (a mounted secret) is used
without a restart. If the files cannot be read, the last certificate stays in use. Never logs their content.
"""

import logging
from pathlib import Path

import grpc

from service.core.reloaded_file import ReloadedFile
from service.core.settings import Settings, SettingsError

_log = logging.getLogger(__name__)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return credentials that follow the files, or None if no TLS is configured. Raises `SettingsError`."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    certificate = _Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    try:
        first = certificate.files.value()
    except OSError as error:
        raise SettingsError(f"tls_certificate, tls_key or tls_client_ca cannot be read: {error}") from error
    return grpc.dynamic_ssl_server_credentials(
        first,
        certificate.if_changed,  # type: ignore[arg-type] # gRPC documents None as "unchanged"; its types do not allow it
        require_client_authentication=settings.tls_client_ca is not None,
    )


class _Certificate:
    """The certificate chain, its key, and the certificates that sign those of clients."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        paths = [path for path in (certificate, key, client_ca) if path is not None]
        self.files = ReloadedFile(*paths, load=self._read)

    def if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new certificate, or None if the files did not change. gRPC calls it at every new connection."""
        try:
            return self.files.value() if self.files.changed else None
        except OSError as error:
            _log.warning("the TLS files cannot be read, so the last certificate stays in use: %s", error)
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate = self._certificate.read_bytes()
        return grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), certificate)],
            root_certificates=self._client_ca.read_bytes() if self._client_ca else None,
        )
