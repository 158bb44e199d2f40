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
	count(lib.parameters.allowedRegistries) > 0
	some c in lib.containers
	c.image != ""
	not is_allowed(full_name(c.image))
}

is_allowed(image) if {
	some prefix in lib.parameters.allowedRegistries
	startswith(image, concat("", [trim_suffix(prefix, "/"), "/"]))
}

# As engines complete it: the first part is a host when it has a dot or a port, or is localhost.
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
