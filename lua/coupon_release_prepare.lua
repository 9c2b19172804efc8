#!lua
-- Announces a release of withheld coupons. From now on no process starts, or extends, a lease to refuse requests for this
-- campaign by itself; coupon_release may follow once the existing leases have expired.
--
-- KEYS 1 meta      hash  partition state
--      2 record    list  idempotency record of the release
--      3 campaign  hash  total withheld reopening ...
-- ARGV 1 fingerprint or ''  2 token, never used before  3 coupons
-- Returns {'RELEASE_PREPARED', token of the preparation that counts: this one or an earlier one}
--      or {'REPLAYED', ...the reply of coupon_release under this key} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or CAMPAIGN_NOT_FOUND | INSUFFICIENT_STOCK (fewer are withheld)
--@include lists
--@include partition
--@include idempotency
local meta, record, campaign = KEYS[1], KEYS[2], KEYS[3]
local fingerprint, token, count = ARGV[1], ARGV[2], tonumber(ARGV[3])

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local c = redis.call('HMGET', campaign, 'total', 'withheld', 'reopening')
if not c[1] then return { 'CAMPAIGN_NOT_FOUND' } end
if tonumber(c[2] or 0) < count then return { 'INSUFFICIENT_STOCK' } end
---- checks above, writes below -------------------------------------------------------------------------------------
if not c[3] then redis.call('HSET', campaign, 'reopening', token) end
return { 'RELEASE_PREPARED', c[3] or token }
