#!/bin/sh
# Starts the machine of the Vagrantfile for real: with a libvirtd, a network and process ids of its own, which all
# end with this program. `script/vagrant test` calls it, as root, when the box is there.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd -P)

# In the namespaces; PID 1 is a shell, which reaps the emulators that libvirt starts to look at them.
inside() {
  mount -t tmpfs tmpfs /run
  mkdir -p "$work/lib" "$work/log" "$work/cache" "$work/etc" /run/libvirt
  for place in lib log cache; do mkdir -p "/var/$place/libvirt"; done
  mount --bind "$work/lib" /var/lib/libvirt
  mount --bind "$work/log" /var/log/libvirt
  mount --bind "$work/cache" /var/cache/libvirt
  mkdir -p /etc/libvirt
  mount --bind "$work/etc" /etc/libvirt
  # libvirt asks an emulator about a /dev/kvm that its account cannot open, again at each step.
  if [ "$TESTBED_DRIVER" = qemu ] && [ -e /dev/kvm ]; then
    : >"$work/none"
    mount --bind "$work/none" /dev/kvm
  fi
  cat >/etc/libvirt/qemu.conf <<END
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
END
  printf 'auth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n' >/etc/libvirt/libvirtd.conf
  ip link set lo up
  libvirtd --daemon
  for _ in $(seq 300); do
    [ -S /run/libvirt/libvirt-sock ] && break
    sleep 0.1
  done
  step "validate" vagrant validate
  step "up" vagrant up --provider=libvirt
  step "doctor" vagrant ssh -c "testbed doctor"
  step "root file system" vagrant ssh -c 'df --output=size -BG / && [ "$(df --output=size -BM / | tail -n 1 | tr -dc 0-9)" -gt 20000 ]'
  step "key" vagrant ssh -c '! grep -q "vagrant insecure" .ssh/authorized_keys'
  step "forwarded port" python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).status)' \
    "http://127.0.0.1:${TESTBED_PORT:-8000}/"
  # A report that a lab would have left: first of an open wall, which makes Vagrant end with 1, then of none.
  for verdict in fail pass; do
    vagrant ssh -c "mkdir -p /srv/testbed/report && echo $verdict >/srv/testbed/report/verdict && : >/srv/testbed/fresh"
    step "report of $verdict" report_arrives $verdict
  done
  step "destroy" vagrant destroy --force
}

report_arrives() {
  code=0
  vagrant provision --provision-with prepare || code=1
  [ "$(cat "$TESTBED_REPORT/verdict")" = "$1" ] && case "$1 $code" in "pass 0" | "fail 1") ;; *) return 1 ;; esac
}

step() {
  name=$1
  shift
  begun=$(date +%s)
  echo "== $name"
  "$@" || { echo "FAILED: $name" >&2; exit 1; }
  echo "== $name: $(($(date +%s) - begun)) s" | tee -a "$work/times"
}

if [ "${1:-}" = inside ]; then
  cd "$here"
  inside
  exit
fi
[ "$(id -u)" = 0 ] || { echo "up: namespaces with a daemon of root need root: use sudo" >&2; exit 4; }
for program in vagrant libvirtd dnsmasq iptables rsync; do
  PATH=$PATH:/usr/sbin command -v $program >/dev/null || { echo "up: $program is missing: install it" >&2; exit 4; }
done
work=$(mktemp -d -p /var/tmp vagrant-XXXXXX)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export work TESTBED_DRIVER="${TESTBED_DRIVER:-qemu}" TESTBED_MEMORY="${TESTBED_MEMORY:-4 GiB}" \
  TESTBED_TOPOLOGY="${TESTBED_TOPOLOGY:-none}" PATH="$PATH:/usr/sbin:/sbin" \
  TESTBED_REPORT="$work/report" \
  VAGRANT_HOME="$work/home" VAGRANT_DOTFILE_PATH="$work/dot" VAGRANT_CHECKPOINT_DISABLE=1 \
  VAGRANT_DEFAULT_PROVIDER=libvirt
unshare --mount --propagation private --net --pid --fork --mount-proc --kill-child sh "$0" inside
echo "== times"
cat "$work/times"
