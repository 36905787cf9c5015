#!/bin/sh
# Makes Open vSwitch's database as its package's start script would; what is a machine's own comes with the identity.
set -e
schema=/usr/share/openvswitch/vswitch.ovsschema
work=$(mktemp -d)
ovsdb-tool create /etc/openvswitch/conf.db "$schema"
ovsdb-server --detach --no-chdir --pidfile="$work/pid" --unixctl="$work/ctl" --remote="punix:$work/sock" --log-file=/dev/null \
  /etc/openvswitch/conf.db
. /etc/os-release
ovs-vsctl --db="unix:$work/sock" --no-wait -- init -- set Open_vSwitch . db-version="$(ovsdb-tool schema-version "$schema")" \
  ovs-version="$(ovs-vswitchd --version | awk '/Open vSwitch/ {print $NF}')" system-type="$ID" "system-version=\"$VERSION_ID\"" \
  external-ids:rundir=/var/run/openvswitch
ovs-appctl -t "$work/ctl" exit
rm -r "$work"
