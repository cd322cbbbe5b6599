// SPDX-License-Identifier: LGPL-2.1-or-later

// client SOCKET FILE: calls usmd by what varlink-go-interface-generator made of FILE, the interface
// description. A program of the name "hold" is managed, with swapped pages.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/varlink/go/varlink"
	manager "iousmdmanager"
)

func must(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func expect(ok bool, format string, a ...interface{}) {
	if !ok {
		must(fmt.Errorf(format, a...), "unexpected")
	}
}

func describes(ctx context.Context, c *varlink.Connection, file string) {
	var vendor, product, version, url string
	var interfaces []string

	must(c.GetInfo(ctx, &vendor, &product, &version, &url, &interfaces), "GetInfo")
	found := false
	for _, name := range interfaces {
		found = found || name == "io.usmd.Manager"
	}
	expect(found && product != "" && version != "", "GetInfo: %q %q %q", product, version, interfaces)
	text, err := c.GetInterfaceDescription(ctx, "io.usmd.Manager")
	must(err, "GetInterfaceDescription")
	want, err := os.ReadFile(file)
	must(err, file)
	expect(text == string(want), "the service describes itself otherwise than %s", file)
	_, err = c.GetInterfaceDescription(ctx, "io.usmd.Nothing")
	_, ok := err.(*varlink.InterfaceNotFound)
	expect(ok, "an unknown interface: %v", err)
}

func processes(ctx context.Context, c *varlink.Connection) {
	list, total, err := manager.ListProcesses().Call(ctx, c, nil, nil)
	must(err, "ListProcesses")
	expect(total == 1 && len(list) == 1, "%d processes of %d", len(list), total)
	p := list[0]
	expect(p.Name == "hold" && p.Policy == "policyOne" && p.Swapped > 0 && p.Resident > 0 &&
		p.UnevictableReason == nil, "process %+v", p)

	count, name := int64(10), "hold"
	frames, total, err := manager.ListFrames().Call(ctx, c, "used", nil, &name, nil, &count)
	must(err, "ListFrames")
	expect(int64(len(frames)) == count && total >= count, "%d frames of %d", len(frames), total)
	expect(*frames[0].Pid == p.Pid && *frames[0].Addr != 0, "frame %+v", frames[0])

	pages := int64(100)
	evicted, reason, err := manager.Evict().Call(ctx, c, &p.Pid, nil, &pages)
	must(err, "Evict")
	expect(evicted == pages && reason == nil, "%d evicted: %v", evicted, reason)
	nobody := int64(1)
	_, _, err = manager.Evict().Call(ctx, c, &nobody, nil, &pages)
	_, ok := err.(*manager.NoSuchProcess)
	expect(ok, "eviction from an unmanaged process: %v", err)
}

// What is generated takes all parameters in their order, and Assign gets more of them as time goes by.
func assign(ctx context.Context, c *varlink.Connection, policy string, limit int64) error {
	var out struct{ TakenOver, Unmanaged *int64 }

	err := c.Call(ctx, "io.usmd.Manager.Assign", map[string]interface{}{
		"name": "someprogram", "policy": policy, "limitBytes": limit, "runtime": true}, &out)
	expect(err != nil || out.TakenOver != nil && out.Unmanaged != nil, "Assign: %+v", out)
	return manager.Dispatch_Error(err)
}

func assignments(ctx context.Context, c *varlink.Connection) {
	policy, limit := "policyOne", int64(64<<20)

	must(assign(ctx, c, policy, limit), "Assign")
	list, _, def, err := manager.ListAssignments().Call(ctx, c, nil, nil)
	must(err, "ListAssignments")
	found := false
	for _, a := range list {
		found = found || a.Name == "someprogram" && a.LimitBytes == limit && *a.AllocPolicy == policy
	}
	expect(found && def == policy, "assignments %+v, default %q", list, def)
	must(manager.Unassign().Call(ctx, c, "someprogram"), "Unassign")
	err = manager.Unassign().Call(ctx, c, "someprogram")
	e, ok := err.(*manager.NoSuchAssignment)
	expect(ok && e.Name == "someprogram", "what is not assigned: %v", err)
	err = assign(ctx, c, "nopolicy", limit)
	n, ok := err.(*manager.NoSuchPolicy)
	expect(ok && n.Name == "nopolicy", "an unknown policy: %v", err)
}

func stream(ctx context.Context, address string) {
	c, err := varlink.NewConnection(ctx, address)
	must(err, "connection")
	defer c.Close()
	receive, err := manager.Monitor().Send(ctx, c, varlink.More)
	must(err, "Monitor")
	last := int64(0)
	for i := 0; i < 3; i++ {
		usec, status, flags, err := receive(ctx)
		must(err, "Monitor's reply")
		expect(usec > last && status.FramesTotal > 0 && status.Processes == 1 &&
			flags&varlink.Continues != 0, "reply %d: %d %+v %d", i, usec, status, flags)
		last = usec
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	address := "unix:" + os.Args[1]
	c, err := varlink.NewConnection(ctx, address)
	must(err, "connection")
	defer c.Close()

	describes(ctx, c, os.Args[2])
	processes(ctx, c)
	assignments(ctx, c)
	swaps, err := manager.ListSwaps().Call(ctx, c)
	must(err, "ListSwaps")
	expect(len(swaps) == 1 && swaps[0].Used > 0 && swaps[0].Writes > 0, "swaps %+v", swaps)
	policies, _, err := manager.ListPolicies().Call(ctx, c, nil, nil)
	must(err, "ListPolicies")
	expect(len(policies) > 0 && policies[0].Name == "policyOne" && policies[0].Processes == 1,
		"policies %+v", policies)
	must(manager.Reload().Call(ctx, c), "Reload")
	stream(ctx, address)
	err = c.Call(ctx, "io.usmd.Manager.NoSuchMethod", nil, nil)
	_, ok := err.(*varlink.MethodNotFound)
	expect(ok, "an unknown method: %v", err)
	fmt.Println("done")
}
