# Images come from registries that are allowed.
package perch.rules.registry_allow_list

import data.perch.lib

about := {
	"rule": "registry-allow-list",
	"severity": "High",
	"remedy": "push the image to an allowed registry and name it there, or have the registry added to allowedRegistries",
}

violation contains lib.violation(about, c.image_path, sprintf("the image %s is not from an allowed registry", [c.image])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.image != ""
	not lib.from_allowed_registry(lib.full_name(c.image))
}
