{{/* Name of the chart, cut to what a label can hold. */}}
{{- define "perch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the release; room is left for -operator-admin. */}}
{{- define "perch.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "perch.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change. Arguments: root, component. */}}
{{- define "perch.selector" -}}
app.kubernetes.io/name: {{ include "perch.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of every object. Arguments: root, component. */}}
{{- define "perch.labels" -}}
{{ include "perch.selector" . }}
app.kubernetes.io/part-of: perch
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "perch.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Arguments: root, component. */}}
{{- define "perch.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "perch.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- required (printf "%s.serviceAccount.name is needed, because %s.serviceAccount.create is false" .component .component) $account.name -}}
{{- end -}}
{{- end -}}

{{- define "perch.sessionKeySecret" -}}
{{- default (printf "%s-session-key" (include "perch.fullname" .)) .Values.gateway.sessionKey.existingSecret -}}
{{- end -}}

{{- define "perch.operatorKeySecret" -}}
{{- default (printf "%s-operator-key" (include "perch.fullname" .)) .Values.gateway.operatorKey.existingSecret -}}
{{- end -}}

{{/* How the gateway is reached. */}}
{{- define "perch.scheme" -}}
{{- ternary "https" "http" (ne .Values.gateway.tls.existingSecret "") -}}
{{- end -}}

{{/* Host of the gateway as pods reach it. */}}
{{- define "perch.gatewayHost" -}}
{{- printf "%s-gateway.%s.svc.%s" (include "perch.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* What the kubelet knows of a container: nothing may be gained in it. */}}
{{- define "perch.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "perch.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Environment of both programs. */}}
{{- define "perch.env" -}}
- name: PERCH_LOG
  value: {{ .Values.log.filter | quote }}
- name: PERCH_LOG_FORMAT
  value: {{ .Values.log.format }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end -}}

{{/* Health as the kubelet asks for it. */}}
{{- define "perch.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end -}}

{{/* Where a pod goes. Arguments: root, component. */}}
{{- define "perch.placement" -}}
{{- $own := index .root.Values .component -}}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $own.topologySpreadConstraints }}
{{- toYaml $own.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "perch.selector" . | nindent 8 }}
{{- end }}
{{- end -}}
