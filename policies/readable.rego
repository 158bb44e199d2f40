# What cannot be read cannot be judged: no form of writing slips past the other rules.
package perch.rules.readable

import data.perch.lib

about := {
	"rule": "readable",
	"severity": "High",
	"remedy": "write the field as its kind has it: an object where an object belongs, a list where a list belongs",
}

violation contains lib.violation(about, "spec", "the server is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.is_server
	not lib.is_remote
	count(lib.server_containers) != 1
}

violation contains lib.violation(about, lib.pod_path, "a container is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.pod_path
	declared := [1 |
		some list in ["containers", "initContainers"]
		some c in object.get(lib.subject, split(concat(".", [lib.pod_path, list]), "."), [])
		not lib.is_own(c)
	]
	count(declared) != count(lib.pod_containers)
}

# Said apart from the counts above: engines differ in what a container without a readable part is.
violation contains lib.violation(about, "spec", "the server is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.is_server
	not lib.is_remote
	some parent in [lib.server_overlay, lib.pod]
	not is_object(object.get(parent, "securityContext", {}))
}

violation contains lib.violation(about, lib.pod_path, "a container is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.pod_path
	some list in ["containers", "initContainers"]
	some c in object.get(lib.subject, split(concat(".", [lib.pod_path, list]), "."), [])
	is_object(c)
	not lib.is_own(c)
	not is_object(object.get(c, "securityContext", {}))
}

violation contains lib.violation(about, lib.pod_path, "a container is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.pod_path
	some list in ["containers", "initContainers"]
	some c in object.get(lib.subject, split(concat(".", [lib.pod_path, list]), "."), [])
	not is_object(c)
}

violation contains lib.violation(about, "services", "a service is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.is_compose
	some service in lib.subject.services
	not is_object(service)
}

violation contains lib.violation(about, concat(".", [lib.pod_path, list]), sprintf("%s is not a list", [list])) if {
	lib.is_on(about.rule)
	some list in ["containers", "initContainers", "volumes"]
	not is_array(object.get(lib.subject, split(concat(".", [lib.pod_path, list]), "."), []))
}

violation contains lib.violation(about, concat(".", [lib.pod_path, "containers"]), "the pod has no container") if {
	lib.is_on(about.rule)
	not lib.is_server
	lib.pod_path
	count(object.get(lib.subject, split(concat(".", [lib.pod_path, "containers"]), "."), [])) == 0
}

violation contains lib.violation(about, "services", "a service is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.is_compose
	count(lib.compose_containers) != count(lib.subject.services)
}

violation contains lib.violation(about, "stages", "a stage is not declared in a form that the rules can read") if {
	lib.is_on(about.rule)
	lib.is_dockerfile
	count(lib.stages) != count(lib.subject.stages)
}
