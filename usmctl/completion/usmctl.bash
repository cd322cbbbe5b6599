# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion for usmctl(1)
# shellcheck shell=bash

# The first column of a list, without its title; nothing when usmd does not answer.
_usmctl_names() {
	usmctl "${_usmctl_dir[@]}" list "$@" 2>/dev/null | cut -f1 | tail -n +2 | sort -u
}

_usmctl_services() {
	systemctl list-unit-files --type=service --no-legend --no-pager 2>/dev/null | cut -d ' ' -f 1
}

# The units whose drop-in is there.
_usmctl_attached() {
	local f

	for f in /etc/systemd/system/*.service.d/50-usmd.conf /run/systemd/system/*.service.d/50-usmd.conf; do
		[[ -e $f ]] || continue
		f=${f%.d/*}
		echo "${f##*/}"
	done
}

_usmctl() {
	local cur prev words cword command="" verb="" i _usmctl_dir=()
	local globals="--json --runtime-dir --no-color --help --version"
	local lists="processes free used assignments policies swap"

	_init_completion || return

	for ((i = 1; i < cword; i++)); do
		case ${words[i]} in
		--runtime-dir)
			_usmctl_dir=(--runtime-dir "${words[i + 1]}")
			((i++))
			;;
		--policy | --limit | --root | --process | --offset | --count | --pages | --size | --priority)
			((i++))
			;;
		--)
			break
			;;
		-*) ;;
		*)
			if [[ -z $command ]]; then
				command=${words[i]}
			elif [[ -z $verb ]]; then
				verb=${words[i]}
			fi
			# What follows is the other command's own line.
			[[ $command == run && -n $verb ]] && break
			;;
		esac
	done

	if [[ $command == run && $i -lt $cword ]]; then
		[[ ${words[i]} == -- ]] && ((i++))
		_command_offset "$i"
		return
	fi

	case $prev in
	--runtime-dir | --root)
		_filedir -d
		return
		;;
	--policy)
		mapfile -t COMPREPLY < <(compgen -W "$(_usmctl_names policies)" -- "$cur")
		return
		;;
	--process)
		mapfile -t COMPREPLY < <(compgen -W "$(_usmctl_names processes)" -- "$cur")
		return
		;;
	--limit | --offset | --count | --pages | --size | --priority)
		return
		;;
	esac

	local choices=""
	case $command in
	"")
		choices="status assign unassign list evict run attach-unit detach-unit swap policy \
			monitor reload"
		;;
	assign)
		if [[ $cur == -* ]]; then
			choices="--alloc --swap --limit --runtime"
		elif [[ -n $verb ]]; then
			choices=$(_usmctl_names policies)
		else
			choices=$(_usmctl_names assignments)
		fi
		;;
	unassign) choices=$(_usmctl_names assignments) ;;
	list)
		case $verb in
		"") choices=$lists ;;
		used) choices="--all --offset --count --process" ;;
		free) choices="--all --offset --count" ;;
		esac
		;;
	evict)
		[[ $cur == -* ]] && choices="--pages --size --all" ||
			choices=$(_usmctl_names processes)
		;;
	run) choices="--policy --limit --or-unmanaged --" ;;
	attach-unit)
		[[ $cur == -* ]] && choices="--policy --limit --runtime --root" ||
			choices=$(_usmctl_services)
		;;
	detach-unit)
		[[ $cur == -* ]] && choices="--root" || choices=$(_usmctl_attached)
		;;
	swap)
		case $verb in
		"") choices="add remove" ;;
		add)
			[[ $cur == -* ]] && choices="--priority" || _filedir
			;;
		remove)
			[[ $cur == -* ]] && choices="--no-wait" || choices=$(_usmctl_names swap)
			;;
		esac
		;;
	policy)
		case $verb in
		"") choices="load unload reload" ;;
		load) _filedir so ;;
		unload | reload) choices=$(_usmctl_names policies) ;;
		esac
		;;
	monitor) choices="--count" ;;
	esac
	[[ $cur == -* ]] && choices+=" $globals"
	[[ -z $choices ]] || mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$cur")
} &&
	complete -F _usmctl usmctl
