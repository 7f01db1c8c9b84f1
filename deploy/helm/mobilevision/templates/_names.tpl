{{- define "mobilevision.selector" -}}
app.kubernetes.io/name: mobilevision
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mobilevision.labels" -}}
{{ include "mobilevision.selector" . }}
app.kubernetes.io/part-of: mobilevision
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* An image of the values: a list of the values of all and of this one. */ -}}
{{- define "mobilevision.image" -}}
{{- $all := index . 0 }}{{ $one := index . 1 -}}
{{- if not (or $one.tag $one.digest) }}{{ fail (printf "image.%s: set the tag (as build.sh printed it) or the digest" $one.name) }}{{ end -}}
{{ $all.registry }}/{{ $one.name }}{{ if $one.digest }}@{{ $one.digest }}{{ else }}:{{ $one.tag }}{{ end }}
{{- end }}

{{- define "mobilevision.settings" -}}
{{- $settings := dict "models" (toJson .Values.models.names) }}
{{- if .Values.gpu.enabled }}{{ $_ := set $settings "require_gpu" true }}{{ end }}
{{- if .Values.tls.secret }}{{ $_ := set $settings "tls_certificate" "/run/tls/tls.crt" }}{{ $_ := set $settings "tls_key" "/run/tls/tls.key" }}{{ end }}
{{- $settings = merge $settings .Values.settings }}
{{- if .Values.callers.secret }}{{ $_ := set $settings "anonymous" "deny" }}{{ $_ := set $settings "callers_file" "/run/callers/callers.toml" }}{{ end }}
{{- range $name := keys $settings | sortAlpha }}
{{- $value := get $settings $name }}
MOBILEVISION_{{ upper $name }}: {{ if kindIs "slice" $value }}{{ toJson $value | quote }}{{ else if kindIs "float64" $value }}{{ toJson $value | quote }}{{ else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "mobilevision.settingsName" -}}
{{ .Release.Name }}-settings-{{ include "mobilevision.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{- define "mobilevision.restricted" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "mobilevision.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "mobilevision.settingsName" . }}
{{- with .Values.extraEnv }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The matchers by which queries select the pods of this release. */ -}}
{{- define "mobilevision.matchers" -}}
namespace="{{ .Release.Namespace }}", app_kubernetes_io_instance="{{ .Release.Name }}"
{{- end }}

{{- define "mobilevision.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
    - {type: Pods, value: 4, periodSeconds: 30}
scaleDown:
  stabilizationWindowSeconds: 600
  selectPolicy: Max
  policies:
    - {type: Percent, value: 10, periodSeconds: 60}
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}
