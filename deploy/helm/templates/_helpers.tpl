{{- define "firstcome.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Leaves room for the suffixes of the resources in 63 characters. */}}
{{- define "firstcome.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "firstcome.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "firstcome.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "firstcome.selector" -}}
app.kubernetes.io/name: {{ include "firstcome.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "firstcome.labels" -}}
{{ include "firstcome.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "firstcome.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "firstcome.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "firstcome.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "firstcome.secret" -}}
{{- if .Values.existingSecret }}
{{- .Values.existingSecret }}
{{- else if .Values.secrets }}
{{- include "firstcome.fullname" . }}
{{- end }}
{{- end }}

{{/* The text of a setting. YAML's numbers are floats: 1000000 would be 1e+06. */}}
{{- define "firstcome.text" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* The settings with these names, or all: (dict "root" $ "names" (list ...)). */}}
{{- define "firstcome.settings" -}}
{{- $names := .names }}
{{- range $name, $value := .root.Values.settings }}
{{- if and (not (kindIs "invalid" $value)) (or (not $names) (has $name $names)) }}
- name: {{ $name }}
  value: {{ include "firstcome.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Stops the rendering of values that can't work. */}}
{{- define "firstcome.check" -}}
{{- if and .Values.existingSecret .Values.secrets }}
{{- fail "existingSecret and secrets are both set: keep one of them" }}
{{- end }}
{{- range $name := list "REDIS_URL" "DATABASE_URL" }}
{{- if not (or $.Values.existingSecret (hasKey $.Values.secrets $name) (hasKey $.Values.settings (printf "%s_FILE" $name))) }}
{{- fail (printf "%s is missing: name a Secret that has it (existingSecret), or set secrets.%s" $name $name) }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not (hasKey .Values.settings "TRUSTED_PROXIES")) }}
{{- fail "ingress needs settings.TRUSTED_PROXIES, the network of its controller's pods: otherwise all customers count as one client, with one limit" }}
{{- end }}
{{- range $name := list "ingress" "opsIngress" }}
{{- $ingress := get $.Values $name }}
{{- if and $ingress.enabled (not $ingress.hosts) }}
{{- fail (printf "%s.hosts is empty" $name) }}
{{- end }}
{{- end }}
{{- if and .Values.serve.autoscaling.enabled (gt (int .Values.serve.autoscaling.minReplicas) (int .Values.serve.autoscaling.maxReplicas)) }}
{{- fail "serve.autoscaling.minReplicas is above maxReplicas" }}
{{- end }}
{{- end }}

{{/* Seconds for a stop: DRAIN_SECONDS, which begin with the signal, and some to spare. */}}
{{- define "firstcome.grace" -}}
{{- $drain := 30 }}
{{- if hasKey .Values.settings "DRAIN_SECONDS" }}{{ $drain = int .Values.settings.DRAIN_SECONDS }}{{ end }}
{{- add $drain 15 }}
{{- end }}

{{/* What all pods have in common. */}}
{{- define "firstcome.pod" -}}
serviceAccountName: {{ include "firstcome.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraVolumes }}
volumes: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What all containers have in common. */}}
{{- define "firstcome.container" -}}
image: {{ include "firstcome.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: ["ALL"] }
{{- with .Values.extraVolumeMounts }}
volumeMounts: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels and annotations of a pod: (dict "root" $ "component" name). A changed Secret of the chart changes the pods. */}}
{{- define "firstcome.podMetadata" -}}
labels:
  {{- include "firstcome.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .root.Values.podAnnotations .root.Values.secrets }}
annotations:
  {{- with .root.Values.secrets }}
  checksum/secrets: {{ toJson . | sha256sum }}
  {{- end }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A Deployment: (dict "root" $ "name" of it "component" name "values" of it "env" and "ports" as YAML). */}}
{{- define "firstcome.deployment" -}}
{{- $root := .root }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  labels:
    {{- include "firstcome.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if not (dig "autoscaling" "enabled" false .values) }}
  replicas: {{ .values.replicas }}
  {{- end }}
  # Start the new pod before stopping the old one.
  strategy:
    type: RollingUpdate
    rollingUpdate: { maxSurge: 1, maxUnavailable: 0 }
  selector:
    matchLabels:
      {{- include "firstcome.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  template:
    metadata:
      {{- include "firstcome.podMetadata" . | nindent 6 }}
    spec:
      {{- include "firstcome.pod" $root | nindent 6 }}
      # More than DRAIN_SECONDS, which begin with the signal. DRAIN_DELAY_SECONDS replaces the sleep of a preStop hook.
      terminationGracePeriodSeconds: {{ include "firstcome.grace" $root }}
      topologySpreadConstraints:
        {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ $key }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "firstcome.selector" $root | nindent 14 }}
              app.kubernetes.io/component: {{ $.component }}
        {{- end }}
      containers:
        - name: {{ .component }}
          {{- include "firstcome.container" $root | nindent 10 }}
          args: [{{ .component | quote }}]
          {{- with include "firstcome.secret" $root }}
          envFrom:
            - secretRef: { name: {{ . }} }
          {{- end }}
          env:
            {{- .env | nindent 12 }}
            {{- with include "firstcome.settings" (dict "root" $root "names" list) | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $root.Values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- .ports | nindent 12 }}
          # The address is bound at once, and answers once the stores are open: a start may have to rebuild Redis.
          startupProbe:
            httpGet: { path: /healthz, port: ops }
            periodSeconds: 2
            failureThreshold: {{ div .values.startupSeconds 2 }}
          # Liveness is not readiness: a process that waits for Redis must not be restarted.
          livenessProbe:
            httpGet: { path: /healthz, port: ops }
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: { path: /readyz, port: ops }
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 1
          resources: {{- toYaml .values.resources | nindent 12 }}
{{- end }}

{{/* An Ingress: (dict "root" $ "name" of it "component" name "values" of it "service" and "port" it leads to). */}}
{{- define "firstcome.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .name }}
  labels:
    {{- include "firstcome.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  {{- with .values.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .values.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with .values.tls }}
  tls: {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range .values.hosts }}
    - host: {{ . | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service: { name: {{ $.service }}, port: { name: {{ $.port }} } }
    {{- end }}
{{- end }}

{{/* A PodDisruptionBudget: (dict "root" $ "name" of it "values" of the component "component" name). */}}
{{- define "firstcome.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  labels:
    {{- include "firstcome.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "firstcome.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
{{- end }}
