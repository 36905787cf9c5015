#!/bin/sh
# Makes both OVN databases, with TLS listeners and, on the southbound one, the role of the chassis.
set -e
mkdir -p /var/lib/ovn
work=$(mktemp -d)
for half in nb sb; do
  file=/var/lib/ovn/ovn${half}_db.db
  ovsdb-tool create "$file" "/usr/share/ovn/ovn-${half}.ovsschema"
  ovsdb-server --detach --no-chdir --pidfile="$work/$half.pid" --unixctl="$work/$half.ctl" \
    --remote="punix:$work/$half.sock" --log-file=/dev/null "$file"
done
ovn-nbctl --db="unix:$work/nb.sock" --no-leader-only init
ovn-nbctl --db="unix:$work/nb.sock" --no-leader-only set-connection pssl:6641
ovn-sbctl --db="unix:$work/sb.sock" --no-leader-only init
ovn-sbctl --db="unix:$work/sb.sock" --no-leader-only set-connection role=ovn-controller pssl:6642
for half in nb sb; do
  ovs-appctl -t "$work/$half.ctl" exit
done
rm -r "$work"
