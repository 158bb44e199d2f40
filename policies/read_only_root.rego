# Nobody changes what the image holds.
package perch.rules.read_only_root

import data.perch.lib

about := {
	"rule": "read-only-root",
	"severity": "Medium",
	"remedy": "set readOnlyRootFilesystem: true (read_only: true in compose) and mount a volume where the program writes",
}

violation contains lib.violation(about, c.read_only_path, sprintf("%s can change its own files", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.read_only == false
}
