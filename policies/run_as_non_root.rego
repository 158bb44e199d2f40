# Nothing runs as root.
package perch.rules.run_as_non_root

import data.perch.lib

about := {
	"rule": "run-as-non-root",
	"severity": "High",
	"remedy": "run as a numeric user above 0: runAsUser: 10001 with runAsNonRoot: true, or USER 10001 in the Dockerfile",
}

violation contains lib.violation(about, c.user_path, sprintf("%s runs as root", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.user == 0
}

violation contains lib.violation(about, c.user_path, sprintf("%s may run as root: nothing says as which user it runs", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.user == -1
	not c.non_root
}
