"""Who may call: identities, permissions and limits of callers. Knows no protocol and no models beyond their names."""
