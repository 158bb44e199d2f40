//! How a package of a public registry is installed by a shell, for images and for pods.

use crate::api::mcp_server::{Package, PackageRegistry};

/// Where packages are installed.
pub const HOME: &str = "/app";
/// The program that a package offers: its only one, or the one named like the package.
pub const PROGRAM: &str = "/app/run";

/// One line of shell that installs a package below [`HOME`] and links its program to [`PROGRAM`].
/// Name and version were checked by the schema: they hold no character that a shell minds.
pub fn install(package: &Package) -> String {
    let Package { registry, name, version } = package;
    match registry {
        PackageRegistry::Npm => {
            let short = name.rsplit('/').next().unwrap_or(name);
            let link = format!(
                "const p=require('/app/node_modules/{name}/package.json').bin,b=typeof p==='string'?{{'{short}':p}}:p||{{}},n=Object.keys(b),k=n.length===1?n[0]:n.find(x=>x==='{short}');if(!k){{console.error('the package offers no single program: name one in spec.command');process.exit(1)}}require('fs').symlinkSync('/app/node_modules/.bin/'+k,'/app/run')"
            );
            format!(
                "npm install --omit=dev --no-audit --no-fund --loglevel=error --prefix /app '{name}@{version}' && node -e \"{link}\""
            )
        }
        PackageRegistry::PyPI => format!(
            "python3 -m venv /app && /app/bin/pip install --no-cache-dir --disable-pip-version-check --no-input '{name}=={version}' && ln -s '/app/bin/{name}' /app/run && test -x /app/run"
        ),
    }
}

/// `PATH` of a process that runs an installed package.
pub fn search_path(registry: PackageRegistry) -> &'static str {
    match registry {
        PackageRegistry::Npm => "/app/node_modules/.bin:/usr/local/bin:/usr/bin:/bin",
        PackageRegistry::PyPI => "/app/bin:/usr/local/bin:/usr/bin:/bin",
    }
}
