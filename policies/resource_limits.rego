# Whatever runs has bounds.
package perch.rules.resource_limits

import data.perch.lib

about := {
	"rule": "resource-limits",
	"severity": "Medium",
	"remedy": "set limits for cpu and memory",
}

violation contains lib.violation(about, concat(".", [c.limits_path, what]), sprintf("%s has no %s limit", [c.what, what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	some what in ["cpu", "memory"]
	c.limits
	not c.limits[what]
}
