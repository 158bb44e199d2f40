# No Linux capability but those that the level allows.
package perch.rules.capabilities

import data.perch.lib

about := {
	"rule": "capabilities",
	"severity": "High",
	"remedy": "drop ALL capabilities and give back only those that the level allows",
}

violation contains lib.violation(about, c.added_path, sprintf("%s gets the capability %s, which is not allowed at level %s", [c.what, name, lib.level])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	some given in c.added
	name := trim_prefix(given, "CAP_")
	not name in lib.parameters.allowedCapabilities
}

violation contains lib.violation(about, replace(c.added_path, ".add", ".drop"), sprintf("%s keeps the default capabilities", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.drops_all == false
	c.kind != "compose"
}

violation contains lib.violation(about, replace(c.added_path, "cap_add", "cap_drop"), sprintf("%s keeps the default capabilities", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.drops_all == false
	c.kind == "compose"
}
