# What all rules read: the object under judgement, in one form for every kind.
#
# Input is either the object itself, as OPA and conftest give it, or
# {"object": ..., "level": "Low|Medium|High", "now": "2026-01-31T00:00:00Z"}, as Perch gives it.
package perch.lib

subject := object.get(input, "object", input)

kind := object.get(subject, "kind", "")

is_server if {
	kind == "McpServer"
	startswith(object.get(subject, "apiVersion", ""), "perch.dev/")
}

# A Dockerfile as Perch reads it has this apiVersion.
is_dockerfile if {
	kind == "Dockerfile"
	object.get(subject, "apiVersion", "") == "policy.perch.dev/v1"
}

is_compose if {
	kind == ""
	is_object(subject.services)
}

default declared_level := "Medium"

declared_level := subject.spec.governance.level

level := object.get(input, "level", declared_level)

asked := object.get(data.perch.levels, level, {})

rules := object.get(asked, "rules", {})

parameters := object.get(asked, "parameters", {})

# Whether the level asks for a rule.
is_on(rule) if object.get(rules, rule, false) != false

annotations := object.get(subject, ["metadata", "annotations"], {})

# The name of an image as engines complete it: the first part is a host when it has a dot or a port,
# or is localhost.
full_name(image) := image if has_host(image)

full_name(image) := concat("", ["docker.io/", image]) if {
	not has_host(image)
	contains(image, "/")
}

full_name(image) := concat("", ["docker.io/library/", image]) if {
	not has_host(image)
	not contains(image, "/")
}

has_host(image) if {
	parts := split(image, "/")
	count(parts) > 1
	regex.match(`[.:]|^localhost$`, parts[0])
}

# Whether the full name of an image is under one of some prefixes.
is_under(image, prefixes) if {
	some prefix in prefixes
	startswith(image, concat("", [trim_suffix(prefix, "/"), "/"]))
}

# Where no registry is named, any is allowed.
from_allowed_registry(_) if count(parameters.allowedRegistries) == 0

from_allowed_registry(image) if is_under(image, parameters.allowedRegistries)

# Where the pod of a workload is declared.
pod_path := "spec" if kind == "Pod"

pod_path := "spec.template.spec" if kind in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "ReplicationController"}

pod_path := "spec.jobTemplate.spec.template.spec" if kind == "CronJob"

pod_path := "spec.podTemplate.spec" if is_server

pod := subject.spec if kind == "Pod"

pod := subject.spec.template.spec if pod_path == "spec.template.spec"

pod := subject.spec.jobTemplate.spec.template.spec if kind == "CronJob"

pod := object.get(subject, ["spec", "podTemplate", "spec"], {}) if is_server

# Whether anything runs here: a remote server runs elsewhere.
is_remote if {
	is_server
	subject.spec.remote
}

# Everything that runs, as objects with a path and what is known about it.
containers := array.concat(array.concat(server_containers, pod_containers), array.concat(compose_containers, stages))

# The server's own container: the spec, with the overlay of its pod template.
server_containers := [c |
	is_server
	not is_remote
	security := object.get(subject.spec, "security", {})
	overlay := server_overlay
	context := object_at(overlay, "securityContext")
	pod_context := object_at(pod, "securityContext")
	c := {
		"kind": "server",
		"what": "the server",
		"image": object.get(overlay, "image", object.get(subject.spec, "image", "")),
		"image_path": image_path(overlay),
		"env": array.concat(env_of(subject.spec, "spec.env"), env_of(overlay, concat(".", [server_path, "env"]))),
		"limits": server_limits(overlay),
		"limits_path": "spec.resources.limits",
		"user": object.get(context, "runAsUser", object.get(pod_context, "runAsUser", object.get(security, "runAsUser", 10001))),
		"user_path": user_path(overlay, pod_context),
		"non_root": true,
		"read_only": object.get(context, "readOnlyRootFilesystem", object.get(security, "readOnlyRootFilesystem", true)),
		"read_only_path": path_of(overlay, ["securityContext", "readOnlyRootFilesystem"], "spec.security.readOnlyRootFilesystem"),
		"added": array.concat(object.get(security, "addCapabilities", []), object.get(context, ["capabilities", "add"], [])),
		"added_path": path_of(overlay, ["securityContext", "capabilities", "add"], "spec.security.addCapabilities"),
		"drops_all": true,
		"privileged": object.get(context, "privileged", false),
		"privileged_path": concat(".", [server_path, "securityContext.privileged"]),
		"escalates": object.get(context, "allowPrivilegeEscalation", false),
		"escalates_path": concat(".", [server_path, "securityContext.allowPrivilegeEscalation"]),
		# The gateway asks every server with an MCP handshake.
		"probed": true,
		"probe_path": "spec.probe",
	}
]

default server_overlay := {}

server_overlay := c if {
	some c in object.get(pod, "containers", [])
	c.name == "server"
}

server_path := "spec.podTemplate.spec.containers[server]"

image_path(overlay) := path_of(overlay, ["image"], "spec.image")

server_limits(overlay) := object.union(
	object.get(subject, ["spec", "resources", "limits"], {"cpu": "500m", "memory": "256Mi"}),
	object.get(overlay, ["resources", "limits"], {}),
)

user_path(overlay, pod_context) := "spec.podTemplate.spec.securityContext.runAsUser" if {
	object.get(overlay, ["securityContext", "runAsUser"], null) == null
	object.get(pod_context, "runAsUser", null) != null
} else := path_of(overlay, ["securityContext", "runAsUser"], "spec.security.runAsUser")

# Where something is declared: in the overlay, or in the spec.
path_of(overlay, keys, otherwise) := concat(".", array.concat([server_path], keys)) if {
	object.get(overlay, keys, null) != null
} else := otherwise

# A member that is an object where it is there at all; else what asks for it cannot be read.
object_at(parent, key) := member if {
	member := object.get(parent, key, {})
	is_object(member)
}

# Containers of a pod; of an McpServer's overlay, those beside the server.
pod_containers := [c |
	some list in ["containers", "initContainers"]
	some i, given in object.get(pod, list, [])
	not is_own(given)
	path := sprintf("%s.%s[%s]", [pod_path, list, object.get(given, "name", format_int(i, 10))])
	context := object_at(given, "securityContext")
	pod_context := object_at(pod, "securityContext")
	c := {
		"kind": list,
		"what": sprintf("container %s", [object.get(given, "name", format_int(i, 10))]),
		"image": object.get(given, "image", ""),
		"image_path": concat(".", [path, "image"]),
		"env": env_of(given, concat(".", [path, "env"])),
		"limits": object.get(given, ["resources", "limits"], {}),
		"limits_path": concat(".", [path, "resources.limits"]),
		"user": object.get(context, "runAsUser", object.get(pod_context, "runAsUser", -1)),
		"user_path": concat(".", [path, "securityContext.runAsNonRoot"]),
		"non_root": object.get(context, "runAsNonRoot", object.get(pod_context, "runAsNonRoot", false)),
		"read_only": object.get(context, "readOnlyRootFilesystem", false),
		"read_only_path": concat(".", [path, "securityContext.readOnlyRootFilesystem"]),
		"added": object.get(context, ["capabilities", "add"], []),
		"added_path": concat(".", [path, "securityContext.capabilities.add"]),
		"drops_all": "ALL" in object.get(context, ["capabilities", "drop"], []),
		"privileged": object.get(context, "privileged", false),
		"privileged_path": concat(".", [path, "securityContext.privileged"]),
		"escalates": object.get(context, "allowPrivilegeEscalation", false),
		"escalates_path": concat(".", [path, "securityContext.allowPrivilegeEscalation"]),
		"probed": has_probe(list, given),
		"probe_path": concat(".", [path, "readinessProbe"]),
	}
]

is_own(container) if {
	is_server
	object.get(container, "name", "") == "server"
}

# What ends by itself needs no probe.
has_probe(list, container) := count([1 | list == "containers"; not kind in {"Job", "CronJob"}; not container.readinessProbe; not container.livenessProbe]) == 0

env_of(container, path) := [e |
	some given in object.get(container, "env", [])
	is_string(given.value)
	e := {"name": given.name, "value": given.value, "path": sprintf("%s[%s]", [path, given.name])}
]

# Services of a compose file.
compose_containers := [c |
	is_compose
	some name, service in subject.services
	path := concat(".", ["services", name])
	c := {
		"kind": "compose",
		"what": sprintf("service %s", [name]),
		# What is built here is judged by its Dockerfile.
		"image": compose_image(service),
		"image_path": concat(".", [path, "image"]),
		"env": compose_env(service, concat(".", [path, "environment"])),
		"limits": compose_limits(service),
		"limits_path": concat(".", [path, "deploy.resources.limits"]),
		"user": compose_user(service),
		"user_path": concat(".", [path, "user"]),
		"non_root": false,
		"read_only": object.get(service, "read_only", false),
		"read_only_path": concat(".", [path, "read_only"]),
		"added": object.get(service, "cap_add", []),
		"added_path": concat(".", [path, "cap_add"]),
		"drops_all": "ALL" in object.get(service, "cap_drop", []),
		"privileged": object.get(service, "privileged", false),
		"privileged_path": concat(".", [path, "privileged"]),
		"escalates": false,
		"escalates_path": concat(".", [path, "security_opt"]),
		"probed": is_object(object.get(service, "healthcheck", false)),
		"probe_path": concat(".", [path, "healthcheck"]),
	}
]

compose_image(service) := "" if service.build

compose_image(service) := object.get(service, "image", "") if not service.build

# The number or name of a user, without its group. -1: the image decides.
compose_user(service) := user_of(object.get(service, "user", ""))

user_of(given) := -1 if given == ""

user_of(given) := 0 if split(sprintf("%v", [given]), ":")[0] in {"0", "root"}

user_of(given) := 1 if {
	given != ""
	not split(sprintf("%v", [given]), ":")[0] in {"0", "root"}
}

compose_limits(service) := {key: value |
	some key, places in {"cpu": [["deploy", "resources", "limits", "cpus"], ["cpus"]], "memory": [["deploy", "resources", "limits", "memory"], ["mem_limit"]]}
	found := [v | some place in places; v := object.get(service, place, null); v != null]
	count(found) > 0
	value := found[0]
}

# The environment of a service is a map, or a list of NAME=VALUE.
compose_env(service, path) := [e |
	some key, value in object.get(service, "environment", {})
	pair := compose_pair(key, value)
	e := {"name": pair[0], "value": pair[1], "path": sprintf("%s[%s]", [path, pair[0]])}
]

compose_pair(key, value) := [key, value] if {
	is_string(key)
	is_string(value)
}

compose_pair(key, value) := [parts[0], concat("=", array.slice(parts, 1, count(parts)))] if {
	is_number(key)
	is_string(value)
	parts := split(value, "=")
	count(parts) > 1
}

# Stages of a Dockerfile. Only the last one runs.
stages := [c |
	is_dockerfile
	some i, stage in subject.stages
	is_last := i == (count(subject.stages) - 1)
	c := {
		"kind": "stage",
		"what": "the image",
		"image": object.get(stage, "image", ""),
		"image_path": sprintf("line %d", [stage.line]),
		"env": [e | some v in stage.env; e := {"name": v.name, "value": v.value, "path": sprintf("line %d", [v.line])}],
		"user": stage_user(stage, is_last),
		"user_path": stage_user_path(stage),
		"non_root": false,
		"probed": stage_probed(stage, is_last),
		"probe_path": sprintf("line %d", [stage.line]),
		"added": [],
		"privileged": false,
		"escalates": false,
	}
]

stage_user(_, is_last) := 1 if not is_last

stage_user(stage, is_last) := user_of(object.get(stage, "user", "")) if is_last

stage_user_path(stage) := sprintf("line %d", [object.get(stage, "userLine", stage.line)])

stage_probed(_, is_last) if not is_last

stage_probed(stage, is_last) := object.get(stage, "healthcheck", false) if is_last

# A violation. None where the rule is off at this level.
violation(about, field, message) := object.union(about, {
	"action": object.get(rules, about.rule, "Deny"),
	"field": field,
	"message": message,
})

# Times, in nanoseconds. Perch says what time it is; else OPA does.
now_ns := time.parse_rfc3339_ns(input.now)

days_since(text) := (now_ns - time.parse_rfc3339_ns(moment(text))) / 86400000000000

# A date is its midnight.
moment(text) := concat("", [text, "T00:00:00Z"]) if regex.match(`^\d{4}-\d{2}-\d{2}$`, text)

moment(text) := text if not regex.match(`^\d{4}-\d{2}-\d{2}$`, text)
