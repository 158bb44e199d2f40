# Nothing runs with the power of the machine.
package perch.rules.privileged

import data.perch.lib

about := {
	"rule": "privileged",
	"severity": "Critical",
	"remedy": "remove privileged, allowPrivilegeEscalation, host namespaces and the mount of the container engine's socket",
}

violation contains lib.violation(about, c.privileged_path, sprintf("%s is privileged: it has the power of the machine", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.privileged == true
}

violation contains lib.violation(about, c.escalates_path, sprintf("%s may gain privileges that it did not start with", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.escalates == true
}

violation contains lib.violation(about, concat(".", [lib.pod_path, namespace]), sprintf("the pod shares the machine's namespace: %s", [namespace])) if {
	lib.is_on(about.rule)
	some namespace in ["hostNetwork", "hostPID", "hostIPC"]
	object.get(lib.pod, namespace, false) == true
}

violation contains lib.violation(about, sprintf("services.%s.%s", [name, key]), sprintf("service %s shares the machine's namespace: %s: host", [name, key])) if {
	lib.is_on(about.rule)
	lib.is_compose
	some name, service in lib.subject.services
	some key in ["network_mode", "pid", "ipc", "userns_mode"]
	object.get(service, key, "") == "host"
}

sockets := ["docker.sock", "containerd.sock", "crio.sock", "podman.sock"]

violation contains lib.violation(about, mount.field, sprintf("%s is mounted: who reaches it rules the machine", [mount.path])) if {
	lib.is_on(about.rule)
	some mount in mounts
	some socket in sockets
	endswith(mount.path, socket)
}

mounts contains {"field": sprintf("spec.volumes[%s].hostPath", [v.name]), "path": v.hostPath.path} if {
	lib.is_server
	some v in lib.subject.spec.volumes
}

mounts contains {"field": sprintf("%s.volumes[%s].hostPath", [lib.pod_path, v.name]), "path": v.hostPath.path} if {
	some v in lib.pod.volumes
}

mounts contains {"field": sprintf("services.%s.volumes", [name]), "path": split(v, ":")[0]} if {
	lib.is_compose
	some name, service in lib.subject.services
	some v in service.volumes
	is_string(v)
}

mounts contains {"field": sprintf("services.%s.volumes", [name]), "path": v.source} if {
	lib.is_compose
	some name, service in lib.subject.services
	some v in service.volumes
	is_object(v)
}
