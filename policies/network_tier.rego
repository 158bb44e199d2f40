# The network fits the care that the server needs.
package perch.rules.network_tier

import data.perch.lib

about := {
	"rule": "network-tier",
	"severity": "High",
	"remedy": "set spec.network.tier to one that the level allows, or lower the level with a reason",
}

violation contains lib.violation(about, "spec.network.tier", sprintf("the tier %s is not allowed at level %s", [tier, lib.level])) if {
	lib.is_on(about.rule)
	lib.is_server
	not lib.is_remote
	tier := object.get(lib.subject.spec, ["network", "tier"], "Internal")
	not tier in lib.parameters.networkTiers
}
