#!/usr/bin/env bash
# Brings the registry of this checkout to a host, with PostgreSQL, Prometheus and Grafana, and keeps
# everybody but its LAN and its containers away from it. May be repeated: it does what is missing,
# brings a later version, and says what it did.
set -euo pipefail

readonly PORT=9205 SERVICES=(db registry prometheus grafana)
readonly SHIPPED=(agent db graph migrations requirements pyproject.toml README.md Dockerfile .dockerignore
  deploy/compose.yaml deploy/prometheus deploy/grafana)

usage() {
  cat <<'END'
deploy.sh [OPTION]... HOST

HOST is whatever ssh takes: a name of its config, or user@address. There, this user is root or may
use sudo without a password, and there are docker with compose, and ufw.

  --dry-run          say what would be done, and do nothing
  --address ADDRESS  where the registry listens, an address of the host's [the one that ssh reached,
                     if it is private, else 127.0.0.1]
  --lan NETWORK      who may come in beside the host's containers, e.g. 10.1.0.0/16; repeatable
                     [the network of that address]
  --directory PATH   where all of it lies on the host [/opt/node-registry-compose]

DEPLOY_SSH             instead of `ssh`, e.g. "ssh -p 2222"
END
}

fail() {
  printf 'deploy: %s\n' "$*" >&2
  exit 1
}

# What runs on the host; `declare -f` carries it there. Each step says what it did, or left as it was.

step() { printf '%-8s %s\n' "$1" "$2"; }

quietly() { "$@" >/dev/null; }

# step_to DONE WHAT COMMAND...: in a dry run it only says so.
step_to() {
  local done=$1 what=$2
  shift 2
  if [[ $DRY_RUN == yes ]]; then
    step "would" "$what"
  else
    "$@"
    step "$done" "$what"
  fi
}

compose() {
  docker compose --env-file "$DIRECTORY/compose.env" --file "$DIRECTORY/release/deploy/compose.yaml" "$@"
}

is_private() {
  [[ $1 =~ ^(10\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.|100\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\.) ]]
}

host_check() {
  local tool reached lans
  for tool in docker ufw ip; do
    command -v "$tool" >/dev/null || fail "there is no $tool on the host"
  done
  docker compose version >/dev/null 2>&1 || fail "docker on the host has no compose: install its plugin"
  docker info >/dev/null 2>&1 || fail "docker on the host is not running"
  if [[ -z $ADDRESS ]]; then
    reached=$(cut -d' ' -f3 <<<"${SSH_CONNECTION:-}")
    ADDRESS=127.0.0.1
    if is_private "$reached"; then ADDRESS=$reached; fi
  fi
  if [[ -z $(ip -4 -o address show to "$ADDRESS") ]]; then
    fail "the host has no address $ADDRESS"
  fi
  read -ra lans <<<"$LANS"
  if [[ $ADDRESS != 127.* ]] && ((${#lans[@]} == 0)); then
    readarray -t lans < <(ip -4 route show scope link src "$ADDRESS" | cut -d' ' -f1)
  fi
  printf 'address %s\n' "$ADDRESS"
  printf 'lan %s\n' "${lans[@]}"
  if [[ -f $DIRECTORY/release.sha256 ]]; then printf 'release %s\n' "$(<"$DIRECTORY/release.sha256")"; fi
}

host_unpack() {
  rm -rf "$DIRECTORY/release.new"
  mkdir -p "$DIRECTORY/release.new"
  # Not whose they were: that number may be anybody's here, and root runs what they say.
  tar --no-same-owner -xzf - -C "$DIRECTORY/release.new"
}

password() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

# A secret is readable in its container, whoever runs there; on the host its folder is root's alone.
keep_secret() {
  local file=$DIRECTORY/secrets/$1
  shift
  (umask 077 && "$@" >"$file.new")
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
}

administrator() {
  printf 'NODE_REGISTRY_ADMINISTRATOR_URL=postgresql://postgres:%s@db/postgres\n' \
    "$(<"$DIRECTORY/secrets/postgres_password")"
}

make_secrets() {
  local name
  if [[ ! -s $DIRECTORY/secrets/postgres_password ]] &&
    docker volume inspect node-registry_db >/dev/null 2>&1; then
    fail "the database is there, but $DIRECTORY/secrets/postgres_password is not: put it back"
  fi
  if [[ $DRY_RUN == no ]]; then
    mkdir -p "$DIRECTORY/secrets"
    chmod 0700 "$DIRECTORY/secrets"
  fi
  for name in postgres_password grafana_password administrator.env; do
    if [[ -s $DIRECTORY/secrets/$name ]]; then
      step "kept" "secret $name"
    elif [[ $name == administrator.env ]]; then
      step_to "made" "secret $name" keep_secret "$name" administrator
    else
      step_to "made" "secret $name" keep_secret "$name" password
    fi
  done
}

set_address() {
  local wanted="NODE_REGISTRY_ADDRESS=$ADDRESS"
  if [[ -f $DIRECTORY/compose.env && $(<"$DIRECTORY/compose.env") == "$wanted" ]]; then
    step "kept" "address $ADDRESS:$PORT"
  else
    CHANGED=yes
    step_to "set" "address $ADDRESS:$PORT" write "$wanted" "$DIRECTORY/compose.env"
  fi
}

write() { printf '%s\n' "$1" >"$2.new" && mv "$2.new" "$2"; }

put_release() {
  rm -rf "$DIRECTORY/release.old"
  if [[ -d $DIRECTORY/release ]]; then mv "$DIRECTORY/release" "$DIRECTORY/release.old"; fi
  mv "$DIRECTORY/release.new" "$DIRECTORY/release"
  ln -s ../../secrets "$DIRECTORY/release/deploy/secrets"
  rm -rf "$DIRECTORY/release.old"
}

build() {
  if [[ -f $DIRECTORY/release.sha256 && $(<"$DIRECTORY/release.sha256") == "$RELEASE" ]]; then
    step "kept" "release ${RELEASE:0:12}"
  else
    CHANGED=yes
    if [[ $DRY_RUN == no ]]; then put_release; fi
    step_to "built" "release ${RELEASE:0:12}" quietly compose build --quiet --pull
  fi
  if [[ $CHANGED == yes ]] || ! are_healthy; then
    CHANGED=yes
    # Their networks have to be there before the firewall can let them in.
    step_to "made" "containers and networks" quietly compose up --no-start --remove-orphans
  fi
}

start() {
  if [[ $CHANGED == no ]]; then
    step "kept" "${SERVICES[*]} running"
    return
  fi
  step_to "started" "${SERVICES[*]}" quietly compose up --detach --remove-orphans
  [[ $DRY_RUN == no ]] || return 0
  if [[ ! -f $DIRECTORY/release.sha256 || $(<"$DIRECTORY/release.sha256") != "$RELEASE" ]]; then
    # They read their configuration from files that are new ones now.
    quietly compose restart prometheus grafana
    write "$RELEASE" "$DIRECTORY/release.sha256"
  fi
}

are_healthy() {
  local containers states
  readarray -t containers < <(compose ps --quiet "${SERVICES[@]}")
  ((${#containers[@]} == ${#SERVICES[@]})) || return 1
  states=$(docker inspect --format '{{.State.Health.Status}}' "${containers[@]}" | sort -u)
  [[ $states == healthy ]]
}

allow() {
  local rule=$1
  shift
  if [[ $'\n'$(ufw show added)$'\n' == *$'\n'"ufw $rule"$'\n'* ]]; then
    step "kept" "ufw $rule"
  else
    step_to "added" "ufw $rule" quietly ufw "$@"
  fi
}

container_networks() {
  docker network ls --quiet | xargs docker network inspect \
    --format '{{range .IPAM.Config}}{{println .Subnet}}{{end}}' | grep -E '^[0-9.]+/' | sort -u
}

# What docker publishes never reaches ufw's own rules: its chain DOCKER-USER comes before them.
docker_rules() {
  local network match="-A DOCKER-USER -p tcp -m conntrack --ctorigdstport $PORT --ctdir ORIGINAL"
  printf '%s\n' "# BEGIN node-registry" "*filter" ":DOCKER-USER - [0:0]"
  for network in "$@"; do printf '%s\n' "$match -s $network -j RETURN"; done
  printf '%s\n' "$match -j DROP" "COMMIT" "# END node-registry"
}

write_docker_rules() {
  printf '%s\n' "$2" "$1" >"$UFW_AFTER_RULES.new"
  chmod 0640 "$UFW_AFTER_RULES.new"
  mv "$UFW_AFTER_RULES.new" "$UFW_AFTER_RULES"
}

is_active() { [[ $(ufw status) == *"Status: active"* ]]; }

set_firewall() {
  local network networks lans rules others ours ssh_port
  read -ra lans <<<"$LANS"
  readarray -t networks < <({ printf '%s\n' "${lans[@]}" && container_networks; } | grep . | sort -u)
  if ! is_active; then
    ssh_port=$(cut -d' ' -f4 <<<"${SSH_CONNECTION:-0 0 0 22}")
    allow "allow $ssh_port/tcp" allow "$ssh_port/tcp" # or this would have been the last visit
  fi
  for network in "${networks[@]}"; do
    allow "allow from $network to any port $PORT proto tcp" \
      prepend allow proto tcp from "$network" to any port "$PORT"
  done
  allow "deny $PORT/tcp" deny "$PORT/tcp"
  rules=$(docker_rules "${networks[@]}")
  others=$(sed '/^# BEGIN node-registry$/,/^# END node-registry$/d' "$UFW_AFTER_RULES" 2>/dev/null || true)
  ours=$(sed -n '/^# BEGIN node-registry$/,/^# END node-registry$/p' "$UFW_AFTER_RULES" 2>/dev/null || true)
  if [[ $others == *DOCKER-USER* ]]; then
    step "left" "$UFW_AFTER_RULES: it has rules for DOCKER-USER that are not ours. Add these to them:"
    grep '^-A' <<<"$rules"
  elif [[ $ours == "$rules" ]]; then
    step "kept" "rules for what docker publishes"
  else
    step_to "set" "rules for what docker publishes" write_docker_rules "$rules" "$others"
    if [[ $DRY_RUN == no ]] && is_active; then quietly ufw reload; fi
  fi
  if is_active; then
    step "kept" "ufw enabled"
  else
    step_to "enabled" "ufw" quietly ufw --force enable
  fi
}

verify() {
  local tries
  [[ $DRY_RUN == no ]] || return 0
  for ((tries = 0; tries < 100; tries++)); do
    if are_healthy; then break; fi
    sleep 3
  done
  are_healthy || fail "not all of ${SERVICES[*]} are healthy: see docker compose --project-name node-registry logs"
  [[ $(compose port registry "$PORT") == "$ADDRESS:$PORT" ]] || fail "the registry is not published on $ADDRESS"
  is_active || fail "ufw is not active"
  step "verified" "${SERVICES[*]} are healthy, the registry on $ADDRESS:$PORT"
}

host_work() {
  CHANGED=no
  make_secrets
  set_address
  build
  set_firewall
  start
  verify
}

# on_host FUNCTION: runs it there as root, with what it needs to know, and our standard input.
on_host() {
  local script
  script="set -euo pipefail
$(printf '%s=%q\n' PORT "$PORT" DRY_RUN "$DRY_RUN" DIRECTORY "$DIRECTORY" ADDRESS "$ADDRESS" LANS "${LANS[*]-}" RELEASE "$RELEASE")
SERVICES=(${SERVICES[*]})
UFW_AFTER_RULES=\${UFW_AFTER_RULES:-/etc/ufw/after.rules}
$(declare -f)
$1"
  # In quotes that every shell knows, whatever this user's is on the host.
  # shellcheck disable=SC2001 # ${script//…} reads its quotes differently in the bash of a Mac
  script="'$(sed "s/'/'\\\\''/g" <<<"$script")'"
  "${SSH[@]}" -o BatchMode=yes -o ConnectTimeout=10 "$HOST" "
    if [ \"\$(id -u)\" = 0 ]; then exec bash -c $script; fi
    exec sudo -n env SSH_CONNECTION=\"\$SSH_CONNECTION\" bash -c $script"
}

hash_of_release() {
  local sum=(sha256sum)
  command -v sha256sum >/dev/null || sum=(shasum -a 256)
  find "${SHIPPED[@]}" -type f ! -path '*/__pycache__/*' ! -path '*/secrets/*' -print0 |
    LC_ALL=C sort -z | xargs -0 "${sum[@]}" | "${sum[@]}" | cut -d' ' -f1
}

main() {
  HOST='' DRY_RUN=no ADDRESS='' LANS=() DIRECTORY=/opt/node-registry-compose
  while (($#)); do
    case $1 in
    --dry-run) DRY_RUN=yes ;;
    --address | --lan | --directory)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
      --address) ADDRESS=$2 ;;
      --lan) LANS+=("$2") ;;
      --directory) DIRECTORY=$2 ;;
      esac
      shift
      ;;
    -h | --help) usage && exit ;;
    -*) fail "there is no option $1; see --help" ;;
    *)
      [[ -z $HOST ]] || fail "one host at a time"
      HOST=$1
      ;;
    esac
    shift
  done
  [[ -n $HOST ]] || { usage >&2 && exit 2; }
  [[ $DIRECTORY =~ ^/[A-Za-z0-9._/-]+$ ]] || fail "--directory: $DIRECTORY is no plain absolute path"
  [[ $ADDRESS =~ ^[0-9.]*$ ]] || fail "--address: $ADDRESS is no IPv4 address"
  local lan facts there
  for lan in ${LANS[@]+"${LANS[@]}"}; do
    [[ $lan =~ ^[0-9.]+/[0-9]+$ ]] || fail "--lan: $lan is no network such as 10.1.0.0/16"
  done
  read -ra SSH <<<"${DEPLOY_SSH:-ssh}"
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  RELEASE=$(hash_of_release)

  facts=$(on_host host_check) || fail "$HOST cannot be used"
  ADDRESS=$(awk '$1 == "address" { print $2 }' <<<"$facts")
  there=$(awk '$1 == "release" { print $2 }' <<<"$facts")
  LANS=()
  while read -r lan; do LANS+=("$lan"); done < <(awk '$1 == "lan" && $2 { print $2 }' <<<"$facts")
  step "reached" "$HOST"
  if [[ $there != "$RELEASE" && $DRY_RUN == no ]]; then
    # bsdtar on a Mac would add files of its own.
    COPYFILE_DISABLE=1 tar -czf - --exclude __pycache__ --exclude secrets "${SHIPPED[@]}" |
      on_host host_unpack
    step "sent" "release ${RELEASE:0:12}"
  fi
  on_host host_work
  if [[ $DRY_RUN == no ]]; then
    cat <<END
The first key: ssh $HOST docker compose --project-name node-registry exec registry node-registry token create --role admin --name NAME
END
  fi
}

main "$@"
