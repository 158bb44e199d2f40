# A server that reaches out says where to.
package perch.rules.egress_named

import data.perch.lib

about := {
	"rule": "egress-named",
	"severity": "Medium",
	"remedy": "set the annotation policy.perch.dev/egress to the hosts that the server calls, as in \"api.github.com:443\", or make it Internal",
}

violation contains lib.violation(about, "metadata.annotations[policy.perch.dev/egress]", "the server may reach everything outside, and does not say what it needs") if {
	lib.is_on(about.rule)
	lib.is_server
	not lib.is_remote
	object.get(lib.subject.spec, ["network", "tier"], "Internal") == "Public"
	trim_space(object.get(lib.annotations, "policy.perch.dev/egress", "")) == ""
	count(object.get(lib.subject.spec, ["network", "egress"], [])) == 0
}
