#!/bin/sh
# Install the Debian packages that the integration tests run against. Needs root and apt; starts no service.
# Run again at will: when every package is there it only asks dpkg.
set -eu

packages="prometheus prometheus-alertmanager victoria-metrics prometheus-node-exporter mosquitto mosquitto-clients gcc libc6-dev chromium haproxy nginx-light slurmctld slurmd slurm-client munge etcd-server prometheus-blackbox-exporter"

missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "integration packages: all present"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "integration packages missing:$missing; run this script as root" >&2
    exit 1
fi

# Maintainer scripts start the services they install; policy-rc.d (exit 101) forbids it for the duration.
policy=/usr/sbin/policy-rc.d
kept=""
restore() {
    if [ -n "$kept" ]; then
        mv -f "$kept" "$policy"
    else
        rm -f "$policy"
    fi
}
if [ -e "$policy" ]; then
    kept="$policy.before-tidewarden"
    cp -p "$policy" "$kept"
fi
trap restore EXIT INT TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # the list is meant to split
apt-get install -q -y --no-install-recommends $missing
